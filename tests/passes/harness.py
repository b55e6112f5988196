"""A backend that runs only the passes: the rewritten graph is run eagerly, its operands packed from their requests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn

from s24compile import passes
from s24compile.config import Config
from s24compile.passes.verify import verify
from tests import masked

CHECKED = tuple(step for p in passes.PASSES for step in (p, verify) if p is not verify)
"""The pipeline with the invariants checked after every pass."""


@dataclasses.dataclass(repr=False, eq=False)
class Capture:
    """A `torch.compile` backend; `rewrites` are its results, one per graph."""

    config: Config = dataclasses.field(default_factory=Config)
    options: passes.LinearOptions = dataclasses.field(default_factory=lambda: passes.LinearOptions(dw="dense"))
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    rewrites: list[passes.Rewrite] = dataclasses.field(default_factory=list)
    masks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Any]):
        before = str(gm.graph)
        rewrite = passes.run(gm, self.config, self.options, passes=CHECKED, **self.keywords)
        assert str(gm.graph) == before, "Dynamo's own graph was edited"
        self.rewrites.append(rewrite)
        names = [node.name for node in gm.graph.find_nodes(op="placeholder")]

        def run(*args: Any) -> Any:
            given = dict(zip(names, args, strict=True))
            packed = [t for request in rewrite.operands for t in self.pack(request, given)]
            return rewrite.graph_module(*args, *packed)

        return run

    def pack(self, request: passes.OperandRequest, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        turned = request.weight_layout == "in_out"
        parts = [given[name].detach() for name in request.weights]
        logical = [part.t() if turned else part for part in parts]
        masks = [torch.ops.s24.transposable_mask(part.contiguous()) for part in logical]
        for name, mask in zip(request.names, masks, strict=True):
            self.masks[name] = mask.t() if turned else mask
        packed = torch.ops.s24.pack_both(torch.cat(logical), torch.cat(masks), request.dtype, request.format)
        return list(packed[: len(request.placeholders)])

    @property
    def sites(self):
        return [site for rewrite in self.rewrites for site in rewrite.sites]

    @property
    def linears(self) -> int:
        return sum(rewrite.count for rewrite in self.rewrites)

    @property
    def nodes(self):
        return [node for rewrite in self.rewrites for node in rewrite.graph_module.graph.nodes]

    def graph(self, index: int = 0) -> str:
        return passes.format_graph(self.rewrites[index].graph_module)


def input_of(*lead: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*(lead or (2, 8)), 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return x.to(dtype).requires_grad_()


def train_step(call, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = call(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    (grad,) = torch.autograd.grad((y * weights).sum(), x, retain_graph=True)
    (y * weights).sum().backward()
    return y.detach(), grad


def check_masked(
    model: nn.Module,
    capture: Capture,
    x: torch.Tensor,
    reference: nn.Module | None = None,
    rtol: float = 1e-5,
    **compile_options,
) -> None:
    """Output, dX and every parameter's gradient equal those of masked dense arithmetic on the captured masks.

    `reference` shares the parameters of `model`: for models whose backward calls their forward again. The tolerance is
    for fp32, sums of 64 terms in another order.
    """
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=capture, **compile_options)
    found = train_step(compiled, x)
    gradients = masked.gradients(model)
    expected = train_step(lambda x: masked.masked_call(reference or model, capture.masks, x), x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=_band(theirs, rtol))
    wanted = masked.gradients(model)
    assert gradients.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(
            gradients[name], grad, rtol=rtol, atol=_band(grad, rtol), msg=lambda m, n=name: f"{n}: {m}"
        )


def _band(expected: torch.Tensor, rtol: float) -> float:
    """Of numbers that cancel to nearly nothing, the rounding of what cancelled is left."""
    return rtol * expected.abs().max().item() + max(64 * torch.finfo(expected.dtype).eps, 1e-6 * rtol)
