"""Layers whose hidden state is 2:4, forward and backward: recipe="activation" against Inductor dense and float8 dense.

    python benchmarks/activation.py                     every layer: results/activation.json
    python benchmarks/activation.py --layers 1280 --act relu --bias
    python benchmarks/activation.py --passes            the two passes over memory against copies, alone:
                                                        results/activation_passes.json

T = 16384 tokens, bf16 autocast, fp32 master weights, in turns with the dense layer of the same activation. Some 8% of
each hidden state are not zero, as in trained layers: zeros also save power, dense or 2:4. Checked before timing: the
output and dX against dense arithmetic on pruned hidden states, and so the weight gradients, exactly (gradient="dense")
or within the spread of their estimates. "ratio" is over the best bf16 dense, "over_float8" over float8 dense
(benchmarks/float8_dense.py), "memory" the peak of a step over that of the dense layer.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import s24compile
from benchmarks import activation_cases, record
from benchmarks.timing import copy_gbs, graph_us
from benchmarks.training import DENSE, FLOAT8, Variant, host_us, medians_ms, peak_bytes, variants
from tests.pruned import pruned_call

NEEDS_GPU = True
TOKENS = 16384
LAYERS: dict[str, tuple[int, int, float]] = {
    "768-3072": (768, 3072, 1.20),
    "1280-5120": (1280, 5120, 1.27),
    "2048-8192": (2048, 8192, 1.28),
    "4096-16384": (4096, 16384, 1.28),
}
"""Name -> (D, F, bar: dense time over 2:4 time)."""
MEMORY_BAR, HOST_BAR = 0.75, 1.05
"""Of a layer's peak memory, and of its host time, over the dense layer's."""
POSITIVE = 0.08
"""Share of a trained layer's hidden state that is not zero."""
SPARSE: dict[str, Any] = {"recipe": "activation", "dense_until": 0, "min_speedup": 0.0}
GRADIENTS = {"s24": "mvue", "s24 exact dW": "dense"}
"""Variant -> its value of the option `gradient`."""


class SquaredRelu(nn.Module):
    """nanochat's feed-forward layer, or one of plain ReLU."""

    def __init__(self, width: int, hidden: int, act: str = "relu2", bias: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        h = nn.functional.relu(self.up(x))
        return self.down(h.square() if self.act == "relu2" else h)


def thin_out_(model: SquaredRelu, x: Tensor) -> None:
    """Changes x [T, D] and the first projection so that a share POSITIVE of the hidden state is above zero."""
    with torch.no_grad():
        x[:, 0] = 1.0
        model.up.weight[:, 0] = 0.0
        sample = model.up(x[:2048]).float()
        threshold = sample.mean() + sample.std() * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - POSITIVE))
        model.up.weight[:, 0] = -threshold


def check(variant: Variant, x: Tensor, exact: bool) -> dict[str, float]:
    """How far a step is off dense arithmetic on the pruned hidden state, in shares of the norm of each result.

    Raises:
        AssertionError: the hidden state is not 2:4, or a difference is more than rounding and estimates explain.
    """
    device = x.device.type
    variant.clear(x)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = variant.run(x)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    found = {"y": y.detach(), "dx": x.grad, **_weight_gradients(variant.module)}
    stats = s24compile.activation_stats(variant.module)
    assert len(stats) == 1, f"{variant.name} has no 2:4 hidden state"
    oracle, other = copy.deepcopy(variant.module), x.detach().clone().requires_grad_()
    oracle.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        expected = pruned_call(oracle, ["down.weight"], other)
    expected.backward(gradient)
    wanted = {"y": expected.detach(), "dx": other.grad, **_weight_gradients(oracle)}
    errors = {}
    for name, value in wanted.items():
        result = found[name]
        assert value is not None
        assert result is not None
        errors[name] = ((result.float() - value.float()).norm() / value.float().norm()).item()
        bound = 2e-2 if exact or not name.endswith("weight") else 0.25
        assert errors[name] < bound, f"{variant.name}: {name} is off by {errors[name]}"
    variant.clear(x)
    return errors


def _weight_gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def measure(name: str, dense: tuple[str, ...], act: str, bias: bool) -> dict[str, Any]:
    """One row of the table."""
    width, hidden, bar = LAYERS[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(TOKENS, width, device="cuda")
    model = SquaredRelu(width, hidden, act, bias).cuda()
    thin_out_(model, x)
    x.requires_grad_()
    candidates = variants(model, dense, {})
    for way, gradient in GRADIENTS.items():
        own = copy.deepcopy(model)
        run = torch.compile(own, backend="s24", options={**SPARSE, "gradient": gradient}, dynamic=False)
        # Not `sparse` to Variant: no weight is packed, so none is to be refreshed.
        candidates.append(Variant(way, own, run, False))
    errors = {v.name: check(v, x, GRADIENTS[v.name] == "dense") for v in candidates if v.name in GRADIENTS}
    stats = s24compile.activation_stats(next(v for v in candidates if v.name == "s24").module)
    times = medians_ms(candidates, x)
    host = {v.name: host_us(v, x) for v in candidates}
    peaks = {v.name: peak_bytes(v, x) for v in candidates}
    best = min((d for d in dense if d != FLOAT8), key=times.__getitem__)
    flop = 3 * 2 * 2 * TOKENS * width * hidden
    (found,) = stats.values()
    return {
        "layer": name, "act": act, "bias": bias, "width": width, "hidden": hidden, "tokens": TOKENS,
        "nonzero": found.nonzero, "dropped": found.dropped, "errors": errors,
        "ms": times, "host_us": host, "peak_bytes": peaks,
        "tflops": {n: flop / t / 1e9 for n, t in times.items()},
        "ratio": times[best] / times["s24"],
        "over_float8": times[FLOAT8] / times["s24"] if FLOAT8 in times else None,
        "memory": peaks["s24"] / peaks[best],
        "host": host["s24"] / host[best],
        "bar": bar, "memory_bar": MEMORY_BAR, "host_bar": HOST_BAR,
    }  # fmt: skip


def passes(act: str, out: Path) -> None:
    """The two passes against copies."""
    copies = copy_gbs()
    print(f"copy: {copies['memcpy']:.0f} GB/s by the driver, {copies['kernel']:.0f} GB/s by a kernel", flush=True)
    checked = activation_cases.check(act)
    print(f"{checked} calls checked against the references", flush=True)
    rows = []
    for case in activation_cases.all_cases(TOKENS, [hidden for _, hidden, _ in LAYERS.values()], act):
        us = graph_us({case.name: case.calls()})[case.name]
        gbs = case.bytes / us / 1e3
        share = gbs / max(copies.values())
        row = {"pass": case.name, "shape": case.shape, "us": us, "gbs": gbs, "of_copy": share, "bar": 0.8}
        rows.append(row)
        print(f"{case.name:38} {case.shape:14} {us:8.1f} us {gbs:6.0f} GB/s, {share:.0%} of a copy", flush=True)
        torch.cuda.empty_cache()
    record.write("activation_passes", {"copy_gbs": copies, "rows": rows}, out)


def main() -> int:
    """Measures, prints a row a layer, writes results/activation.json or results/activation_passes.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", default=[], help="parts of layer names; default: all")
    parser.add_argument("--dense", nargs="*", default=list(DENSE), choices=list(DENSE))
    parser.add_argument("--act", default="relu2", choices=["relu2", "relu"])
    parser.add_argument("--bias", action="store_true", help="projections with biases")
    parser.add_argument("--passes", action="store_true", help="time the passes over memory, and no layer")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    if given.passes:
        passes(given.act, given.out)
        return 0
    for name in LAYERS:
        if given.layers and not any(part in name for part in given.layers):
            continue
        row = measure(name, tuple(given.dense), given.act, given.bias)
        spelled = ", ".join(f"{n} {t:.3f} ms" for n, t in row["ms"].items())
        over = f", x{row['over_float8']:.2f} over float8" if row["over_float8"] else ""
        print(
            f"{name:11} {given.act:5} {spelled}; x{row['ratio']:.2f} (bar {row['bar']:.2f}){over}; "
            f"memory x{row['memory']:.2f} (bar {MEMORY_BAR}), host x{row['host']:.2f} (bar {HOST_BAR}); "
            f"{row['nonzero']:.1%} not zero, {row['dropped']:.2%} dropped",
            flush=True,
        )
        record.add_rows("activation", [row], ("layer", "act", "bias"), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
