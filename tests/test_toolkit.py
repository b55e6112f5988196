"""Each row of docs/toolkit.md: what the research toolkit's README shows, done here. One test per row."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import s24compile
from s24compile import ops, to_sparse_semi_structured
from s24compile.kernels import providers
from tests.closeness import assert_as_close_as_torch
from tests.kernels.oracles import best_patterns, blocks_of, two_largest

PAGE = Path(__file__).parents[1] / "docs" / "toolkit.md"
ROW = re.compile(r"^\| (?!Theirs |---)(.+?) \| (.+?) \|$", re.MULTILINE)
COMPILE = {"inner": "aot_eager", "min_speedup": 0}


def make(device, dtype=torch.float16):
    """The README's `A = torch.randn(128, 128)`, and A pruned to its two largest of four."""
    a = torch.randn(128, 128).to(device, dtype)
    return a, torch.where(two_largest(a), a, 0.0)


def train(device, options, steps, optimizer=None, scale_loss=1.0):
    """(model, compiled model, optimizer) after some steps of a small FFN."""
    net = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).to(device)
    compiled = torch.compile(net, backend="s24", options={**COMPILE, **options})
    optimizer = optimizer(net) if optimizer else torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (compiled(torch.randn(16, 64, device=device)).square().mean() * scale_loss).backward()
        optimizer.step()
    return net, compiled, optimizer


def prune_the_smallest_two_of_four(device):
    a, pruned = make(device)
    assert torch.equal(to_sparse_semi_structured(a).to_dense(), pruned)


def prune_by_a_mask(device):
    a, _ = make(device)
    mask = torch.tensor([[0, 1, 1, 0]], device=device).repeat(128, 32)
    assert torch.equal(to_sparse_semi_structured(a, mask=mask).to_dense(), a * mask)


def prune_by_mvue(device):
    a, _ = make(device, torch.float32)
    seen = to_sparse_semi_structured(a, mvue=True).to_dense()
    assert (seen != 0).unflatten(1, (-1, 4)).sum(-1).eq(2).all()
    # Each group's estimate keeps its sum's magnitude: |y| = sum |x| / 2 at both places unless one is larger.
    assert bool(torch.isfinite(seen).all())
    torch.testing.assert_close(
        seen.abs().unflatten(1, (-1, 4)).sum(-1), a.abs().unflatten(1, (-1, 4)).sum(-1), atol=1e-5, rtol=1e-5
    )


def pack_in_half_precision(device):
    a, _ = make(device, torch.float32)
    s = to_sparse_semi_structured(a, dtype=torch.float16)
    assert s.dtype == torch.float16
    assert torch.equal(s.to_dense(), torch.where(two_largest(a), a, 0.0).half())


def pack_in_int8(device):
    a, pruned = make(device, torch.float32)
    s = to_sparse_semi_structured(a, dtype=torch.int8)
    assert s.dtype == torch.int8
    assert float((s.to_dense() - pruned).abs().max()) <= 0.5001 * float(pruned.abs().max()) / 127


def pack_in_float8(device):
    a, pruned = make(device, torch.float32)
    for dtype in (torch.float8_e5m2, torch.float8_e4m3fn):
        s = to_sparse_semi_structured(a, dtype=dtype)
        assert s.dtype == dtype
        large = pruned.abs() >= 0.1
        error = (s.to_dense() - pruned)[large].abs() / pruned[large].abs()
        assert float(error.max()) <= 0.5001 * torch.finfo(dtype).eps


def add_bias_to_dense_times_transposed(device):
    a, pruned = make(device)
    x, bias = torch.randn(32, 128).to(device, a.dtype), torch.randn(128).to(device, a.dtype)
    got = torch.addmm(bias, x, to_sparse_semi_structured(a).t())
    exact = bias.double() + x.double() @ pruned.double().t()
    assert_as_close_as_torch(got, torch.addmm(bias, x, pruned.t()), exact)


def multiply_dense_by_sparse(device):
    a, pruned = make(device)
    x, s = torch.randn(32, 128).to(device, a.dtype), to_sparse_semi_structured(a)
    for sparse, dense in ((s.t(), pruned.t()), (s, pruned)):
        assert_as_close_as_torch(torch.mm(x, sparse), torch.mm(x, dense), x.double() @ dense.double())
    calls = sparse_products()
    torch.mm(x, s.t())
    assert sparse_products() == calls + 1


def sparse_products():
    return sum(count for (op, _), count in providers.recorded().items() if op == "mm")


def multiply_sparse_by_dense(device):
    a, pruned = make(device)
    b = torch.randn(128, 32).to(device, a.dtype)
    assert_as_close_as_torch(
        torch.mm(to_sparse_semi_structured(a), b), torch.mm(pruned, b), pruned.double() @ b.double()
    )


def apply_linear_with_bias(device):
    a, pruned = make(device)
    x, bias = torch.randn(4, 8, 128).to(device, a.dtype), torch.randn(128).to(device, a.dtype)
    got = F.linear(x, to_sparse_semi_structured(a), bias)
    assert_as_close_as_torch(got, F.linear(x, pruned, bias), F.linear(x.double(), pruned.double(), bias.double()))


def transpose(device):
    a, pruned = make(device)
    assert torch.equal(torch.ops.aten.t.default(to_sparse_semi_structured(a)).to_dense(), pruned.t())


def detach(device):
    a, pruned = make(device)
    assert torch.equal(torch.ops.aten.detach.default(to_sparse_semi_structured(a)).to_dense(), pruned)


def choose_the_kernel_unasked(device):
    a, _ = make(device, torch.bfloat16)
    s, b = to_sparse_semi_structured(a), torch.randn(128, 32).to(device, torch.bfloat16)
    p = s.packed
    args = (p.values, p.metadata, *p.shape, p.format, b, None, "row", torch.bfloat16)
    chosen = providers.choose("mm", *args).provider.name
    before = providers.recorded().get(("mm", chosen), 0)
    s @ b
    assert providers.recorded()["mm", chosen] == before + 1


def select_a_transposable_mask(device):
    a, _ = make(device)
    mask = ops.transposable_mask(a)
    blocks = blocks_of(mask.cpu())
    assert blocks.sum(-1).eq(2).all()
    assert blocks.sum(-2).eq(2).all()
    kept = blocks_of(a.cpu().double().abs()).mul(blocks).sum()
    assert kept == best_kept(a.cpu().double())


def best_kept(a):
    """The largest L1 norm that 90 patterns per block leave, by brute force."""
    from tests.kernels.oracles import all_transposable_patterns

    return (blocks_of(a.abs()) * all_transposable_patterns()[best_patterns(a)]).sum()


def add_masked_decay(device):
    p, grad = torch.randn(128, 128, device=device), torch.randn(128, 128, device=device)
    mask = ops.transposable_mask(p)
    expected = grad.clone().add_(p * (1 - mask.float()), alpha=2e-4)
    ops.masked_decay_(grad, p, mask, 2e-4)
    torch.testing.assert_close(grad, expected)


def threshold_softly(device):
    a, pruned = make(device, torch.float32)
    soft = ops.soft_threshold(a)
    assert torch.equal(soft != 0, pruned != 0)
    second_smallest = a.abs().unflatten(1, (-1, 4)).sort(-1).values[..., 1:2]
    expected = a.sign() * (a.abs() - second_smallest.expand(-1, -1, 4).flatten(1)).clamp(min=0)
    torch.testing.assert_close(soft, expected)


def threshold_hard(device):
    a, pruned = make(device)
    assert torch.equal(a * ops.magnitude_mask(a), pruned)


def replace_the_transposable_linear(device):
    net, compiled, _ = train(device, {"recipe": "fst"}, 1)
    weights = s24compile.sparse_weights(net)
    assert list(weights) == ["0.weight", "2.weight"]
    masked = {name: net.get_parameter(name) * weight.mask for name, weight in weights.items()}
    x = torch.randn(16, 64, device=device)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), torch.func.functional_call(net, masked, (x,)))


def refresh_masks_every_40_steps(device):
    net, compiled, _ = train(device, {"recipe": "fst"}, 40)
    weight = s24compile.sparse_weights(net)["0.weight"]
    assert (weight.steps, weight.age) == (40, 40)
    compiled(torch.randn(16, 64, device=device))
    assert weight.age == 0


def decay_pruned_weights_by_option(device):
    moved = {}
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        net, _, _ = train(device, {"recipe": "fst", "decay": decay, "gradient": "dense"}, 1)
        moved[decay] = net[0].weight.detach().clone()
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))[0].weight.detach().to(device)
    mask = s24compile.sparse_weights(net)["0.weight"].mask
    torch.testing.assert_close(moved[0.5] - moved[0.0], -0.1 * 0.5 * before * ~mask)


def go_dense_after_a_step(device):
    net, compiled, _ = train(device, {"recipe": "fst", "dense_after": 2}, 1)
    assert s24compile.sparse_weights(net)["0.weight"].phase == "sparse"
    net, compiled, _ = train(device, {"recipe": "fst", "dense_after": 2}, 2)
    assert s24compile.sparse_weights(net)["0.weight"].phase == "dense"
    x = torch.randn(16, 64, device=device)
    torch.testing.assert_close(compiled(x), net(x))


def train_by_soft_threshold(device):
    torch.manual_seed(0)
    first = nn.Linear(64, 128).weight.detach()
    torch.manual_seed(0)
    net, compiled, _ = train(device, {"recipe": "sste"}, 2)
    scale = s24compile.sparse_weights(net)["0.weight"].scale
    soft = ops.soft_threshold(first)
    expected = (first * soft).sum() / (soft * soft).sum()
    torch.testing.assert_close(scale.cpu(), expected)
    effective = {
        name: weight.scale * ops.soft_threshold(net.get_parameter(name).detach())
        for name, weight in s24compile.sparse_weights(net).items()
    }
    x = torch.randn(16, 64, device=device)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), torch.func.functional_call(net, effective, (x,)))


def train_by_step(device):
    """Dense at first, then sparse: the optimizer tells the weights when."""
    phases = []
    net, compiled, optimizer = train(device, {"recipe": "step"}, 0, optimizer=adamw_step)
    for _ in range(6):
        optimizer.zero_grad()
        compiled(torch.randn(16, 64, device=device)).square().mean().backward()
        optimizer.step()
        phases.append({weight.phase for weight in s24compile.sparse_weights(net).values()})
    assert phases[0] == {"dense"}
    assert phases[-1] == {"sparse"}


def adamw_step(net):
    return s24compile.AdamW_STEP(net.parameters(), lr=1e-3, total_steps=6, clip=(0.1, 0.5), criterion="mean")


def step_with_a_frozen_variance(device):
    net, compiled, optimizer = train(device, {"recipe": "step"}, 4, optimizer=adamw_step)
    frozen = {p: optimizer.state[p]["exp_avg_sq"].clone() for p in net.parameters()}
    optimizer.zero_grad()
    compiled(torch.randn(16, 64, device=device)).square().mean().backward()
    optimizer.step()
    for p, variance in frozen.items():
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], variance)


ROWS = {
    "`sparse.to_sparse_semi_structured(A)`": prune_the_smallest_two_of_four,
    "`sparse.to_sparse_semi_structured(A, mask=your_mask)`": prune_by_a_mask,
    "`sparse.to_sparse_semi_structured(A, MVUE24=True)`": prune_by_mvue,
    "`sparse.to_sparse_semi_structured(A, dtype=torch.float16)`": pack_in_half_precision,
    "`sparse.to_sparse_semi_structured(A, dtype=torch.int8)`": pack_in_int8,
    "`sparse.to_sparse_semi_structured(A, dtype=torch.float8_e5m2)`": pack_in_float8,
    "`torch.addmm(bias, dense, sparse.t())`": add_bias_to_dense_times_transposed,
    "`torch.mm(dense, sparse)`": multiply_dense_by_sparse,
    "`torch.mm(sparse, dense)`": multiply_sparse_by_dense,
    "`aten.linear.default(dense, sparse, bias)`": apply_linear_with_bias,
    "`aten.t.default(sparse)`": transpose,
    "`aten.detach.default(sparse)`": detach,
    "`SparseSemiStructuredTensor._FORCE_CUTLASS = False`": choose_the_kernel_unasked,
    "`sparse.TransposableSparse()(A)`": select_a_transposable_mask,
    "`sparse.masked_add_(grad, p, mask, alpha=2e-4)`": add_masked_decay,
    "`sparse.soft_threshold24_triton(A)`": threshold_softly,
    "`sparse.sparse24_triton(A)`": threshold_hard,
    "`SparseLinearTranspose` in place of `nn.Linear`": replace_the_transposable_linear,
    "`self.weight.freq = 40`": refresh_masks_every_40_steps,
    "the `masked_add_` loop before `optimizer.step()`": decay_pruned_weights_by_option,
    "`if iter_num == 250000: p.mode = 'dense'`": go_dense_after_a_step,
    "`SparseLinear` and `init_scale()` (S-STE)": train_by_soft_threshold,
    "`STEPLinear`": train_by_step,
    "`sparse.AdamW_STEP(...)`": step_with_a_frozen_variance,
}


@pytest.mark.parametrize("theirs", ROWS, ids=[check.__name__ for check in ROWS.values()])
def test_do_what_the_toolkit_does(theirs, device):
    ROWS[theirs](device)


def test_document_every_row_and_test_every_documented_one():
    assert [theirs for theirs, _ in ROW.findall(PAGE.read_text())] == list(ROWS)


def test_name_only_what_exists_in_the_documentation():
    for theirs, ours in ROW.findall(PAGE.read_text()):
        for dotted in re.findall(r"s24compile\.([\w.]+)", ours):
            found = s24compile
            for part in dotted.split("."):
                assert hasattr(found, part), f"{theirs}: s24compile.{dotted} does not exist"
                found = getattr(found, part)
        for option in re.findall(r'options=\{"(\w+)"', ours):
            assert option in s24compile.Config.__dataclass_fields__
