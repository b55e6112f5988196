"""The functional API refuses what it cannot do with the right class, traces, and works on fake tensors."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from s24compile import ops
from s24compile.errors import ArgumentError, DtypeError, MaskError, OptionError, S24Error, ShapeError, TargetError

SPARSE = torch.tensor([[1.0, 2, 0, 0, 3, 0, 0, 4]]).repeat(4, 1)
MASK = SPARSE != 0


def packed():
    return ops.pack(SPARSE)


REFUSED = {
    "odd rows": (ShapeError, lambda: ops.transposable_mask(torch.ones(6, 8))),
    "odd columns": (ShapeError, lambda: ops.transposable_mask(torch.ones(8, 6))),
    "vector": (ShapeError, lambda: ops.transposable_mask(torch.ones(8))),
    "odd last dim": (ShapeError, lambda: ops.magnitude_mask(torch.ones(4, 7))),
    "0-d": (ShapeError, lambda: ops.magnitude_mask(torch.tensor(1.0))),
    "soft odd": (ShapeError, lambda: ops.soft_threshold(torch.ones(2, 3))),
    "scale odd": (ShapeError, lambda: ops.soft_threshold_scale(torch.ones(2, 3))),
    "mvue odd dim": (ShapeError, lambda: ops.mvue(torch.ones(6, 8), dim=0)),
    "mvue no such dim": (ShapeError, lambda: ops.mvue(torch.ones(4, 4), dim=2)),
    "pack odd": (ShapeError, lambda: ops.pack(torch.ones(4, 6), torch.ones(4, 6))),
    "pack batch": (ShapeError, lambda: ops.pack(torch.ones(2, 4, 4), torch.ones(2, 4, 4))),
    "pack other mask": (ShapeError, lambda: ops.pack(SPARSE, MASK[:2])),
    "pack_both odd rows": (ShapeError, lambda: ops.pack_both(SPARSE[:2], MASK[:2])),
    "mvue_pack batch": (ShapeError, lambda: ops.mvue_pack(torch.ones(2, 4, 4), seed=1)),
    "mm inner": (ShapeError, lambda: ops.mm(packed(), torch.ones(4, 4))),
    "mm vector": (ShapeError, lambda: ops.mm(packed(), torch.ones(8))),
    "mm bias": (ShapeError, lambda: ops.mm(packed(), torch.ones(8, 2), bias=torch.ones(2))),
    "linear inner": (ShapeError, lambda: ops.linear(torch.ones(3, 4), packed())),
    "glu odd": (ShapeError, lambda: ops.glu(torch.ones(3, 5))),
    "flip_rate shapes": (ShapeError, lambda: ops.flip_rate(MASK, MASK[:2])),
    "integer mask source": (DtypeError, lambda: ops.transposable_mask(torch.ones(4, 4, dtype=torch.int32))),
    "complex": (DtypeError, lambda: ops.magnitude_mask(torch.ones(4, 4, dtype=torch.complex64))),
    "integer pack": (DtypeError, lambda: ops.pack(SPARSE.int())),
    "integer mvue": (DtypeError, lambda: ops.mvue(torch.ones(4, 4, dtype=torch.int64))),
    "bool glu": (DtypeError, lambda: ops.glu(torch.ones(4, 4, dtype=torch.bool))),
    "pack to int32": (DtypeError, lambda: ops.pack(SPARSE, dtype=torch.int32)),
    "mm mixed": (DtypeError, lambda: ops.mm(packed(), torch.ones(8, 2, dtype=torch.bfloat16))),
    "dense pack": (MaskError, lambda: ops.pack(torch.ones(4, 4))),
    "dense mask": (MaskError, lambda: ops.pack(torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool))),
    "act": (OptionError, lambda: ops.glu(torch.ones(4, 4), act="tanh")),
    "gate": (OptionError, lambda: ops.glu(torch.ones(4, 4), gate="third")),
    "out_layout": (OptionError, lambda: ops.mm(packed(), torch.ones(8, 2), out_layout="column")),
    "float seed": (OptionError, lambda: ops.mvue(torch.ones(4, 4), seed=0.5)),
    "mask on meta": (TargetError, lambda: ops.pack(SPARSE, MASK.to("meta"))),
    "both mask on meta": (TargetError, lambda: ops.pack_both(SPARSE.to("meta"), MASK)),
    "mm on meta": (TargetError, lambda: ops.mm(packed(), torch.ones(8, 2, device="meta"))),
    "bias on meta": (TargetError, lambda: ops.mm(packed(), torch.ones(8, 2), bias=torch.ones(4, device="meta"))),
    "linear on meta": (TargetError, lambda: ops.linear(torch.ones(3, 8, device="meta"), packed())),
    "decay of meta": (TargetError, lambda: ops.masked_decay_(SPARSE.clone(), SPARSE.to("meta"), MASK, 0.1)),
    "flip_rate on meta": (TargetError, lambda: ops.flip_rate(MASK, MASK.to("meta"))),
    "mask of a list": (ArgumentError, lambda: ops.transposable_mask([[1.0] * 4] * 4)),
    "mvue dim by name": (ArgumentError, lambda: ops.mvue(SPARSE, dim="rows")),
    "pack mask of a list": (ArgumentError, lambda: ops.pack(SPARSE, MASK.tolist())),
    "unpack dense": (ArgumentError, lambda: ops.unpack(SPARSE)),
    "mm dense": (ArgumentError, lambda: ops.mm(SPARSE, torch.ones(8, 2))),
    "mm by nothing": (ArgumentError, lambda: ops.mm(packed(), None)),
    "mm bias of a number": (ArgumentError, lambda: ops.mm(packed(), torch.ones(8, 2), bias=1.0)),
    "linear the wrong way round": (ArgumentError, lambda: ops.linear(packed(), SPARSE)),
    "decay of no gradient": (ArgumentError, lambda: ops.masked_decay_(None, SPARSE, MASK, 0.1)),
    "decay by a word": (ArgumentError, lambda: ops.masked_decay_(SPARSE.clone(), SPARSE, MASK, "0.1")),
    "two seeds": (OptionError, lambda: ops.mvue(torch.ones(4, 4), seed=torch.tensor([1, 2]))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_with_their_class_and_a_sentence(case):
    error, call = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, S24Error)
    assert len(str(caught.value)) > 30, "it says what was given and what is accepted"


def everything(w, x, z, bias):
    mask = ops.transposable_mask(w)
    p, transposed = ops.pack_both(w, mask)
    estimate = ops.mvue_pack(x, seed=3)
    y = ops.linear(x, p, bias)
    return {
        "mask": mask,
        "magnitude": ops.magnitude_mask(w),
        "soft": ops.soft_threshold(w),
        "scale": ops.soft_threshold_scale(w),
        "mvue": ops.mvue(x, dim=1, seed=1),
        "drawn": ops.mvue(x),
        "dense": ops.unpack(ops.pack(w, mask, dtype=torch.bfloat16)),
        "y": y,
        "dx": ops.mm(transposed, y.t(), out_layout="col"),
        "dw": ops.mm(estimate, x, out_dtype=torch.float64),
        "h": ops.glu(z, act="silu", gate="second"),
        "p": p,
    }


@pytest.fixture
def inputs(device):
    shapes = ((64, 128), (6, 128), (6, 16), (64,))
    return [torch.randn(shape, device=device) for shape in shapes]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_everything_traces_in_one_graph(backend, inputs):
    torch.manual_seed(0)
    expected = everything(*inputs)
    torch.manual_seed(0)
    found = torch.compile(everything, backend=backend, fullgraph=True)(*inputs)
    packs = expected.pop("p"), found.pop("p")
    if backend == "inductor":  # its generator draws another seed
        expected.pop("drawn"), found.pop("drawn")
    torch.testing.assert_close(found, expected)
    assert isinstance(packs[1], ops.Packed24)
    assert packs[0][2:] == packs[1][2:], "shape, dtype, format"
    assert torch.equal(packs[0].values, packs[1].values)
    assert torch.equal(packs[0].metadata, packs[1].metadata)


def test_a_packed_tensor_is_an_input_of_a_compiled_function(inputs):
    w, x, _, bias = inputs
    p = ops.pack(w, ops.magnitude_mask(w))
    run = torch.compile(ops.linear, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(x, p, bias), ops.linear(x, p, bias))


def test_fake_tensors_flow_through_with_real_strides(inputs):
    from torch._subclasses import FakeTensorMode

    real = everything(*inputs)
    with FakeTensorMode() as mode:
        fake = everything(*[mode.from_tensor(t) for t in inputs])
    for name, value in real.items():
        for r, f in zip(
            torch.utils._pytree.tree_leaves(value), torch.utils._pytree.tree_leaves(fake[name]), strict=True
        ):
            if isinstance(r, torch.Tensor):
                assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride()), name
            else:
                assert r == f


def test_sizes_that_change_do_not_compile_again_and_again(inputs):
    w, _, _, bias = inputs
    p, _ = ops.pack_both(w, ops.transposable_mask(w))
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(
        lambda x: ops.mm(ops.mvue_pack(x, seed=1), ops.linear(x, p, bias)), backend=counter, dynamic=True
    )
    for tokens in (8, 12, 7, 64, 33):
        x = torch.randn(tokens, 128, device=w.device)
        torch.testing.assert_close(run(x), ops.mm(ops.mvue_pack(x, seed=1), ops.linear(x, p, bias)))
    # Rows of packed values are padded to 16 bytes: contiguous or not is the one thing a graph is specialised on.
    assert counter.frame_count <= 2


def test_only_dense_arguments_are_differentiated(inputs):
    w, x, _, bias = (t.requires_grad_() for t in inputs)
    p = ops.pack(w, ops.magnitude_mask(w))
    assert not p.values.requires_grad
    assert not ops.mvue(x, seed=1).requires_grad
    ops.linear(x, p, bias).sum().backward()
    assert w.grad is None
    assert x.grad is not None
    assert bias.grad is not None


def test_masks_of_any_dtype_count_non_zeros(device):
    assert torch.equal(ops.unpack(ops.pack(SPARSE.to(device), MASK.float().to(device))).cpu(), SPARSE)
    assert ops.flip_rate(MASK.float().to(device), MASK.to(device) * 2) == 0


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_int_seeds_may_vary_in_a_compiled_function(backend, device):
    x = torch.randn(8, 8, device=device)
    run = torch.compile(lambda x, seed: ops.mvue(x, seed=seed), backend=backend, fullgraph=True)
    for seed in (1, 2, -3, 2**63 - 1, torch.tensor(7, device=device)):
        assert torch.equal(run(x, seed), ops.mvue(x, seed=seed))


@pytest.mark.parametrize(
    "call",
    [
        lambda w, p, b: ops.mm(p, b, bias=torch.ones(8, dtype=torch.int32)),
        lambda w, p, b: ops.mm(p, b, bias=torch.ones(8, dtype=torch.complex64)),
        lambda w, p, b: ops.mm(p, b, out_dtype=torch.int32),
        lambda w, p, b: ops.mm(p, b, out_dtype="float32"),
        lambda w, p, b: ops.pack(w.to(torch.float8_e4m3fnuz), ops.magnitude_mask(w)),
        lambda w, p, b: ops.pack_both(w.to(torch.float8_e4m3fnuz), ops.transposable_mask(w)),
        lambda w, p, b: ops.mvue_pack(w.to(torch.float8_e8m0fnu), seed=1),
    ],
    ids=["int bias", "complex bias", "int result", "result by name", "pack fp8 fnuz", "both fp8 fnuz", "mvue fp8 e8m0"],
)
def test_refuse_dtypes_that_would_be_cut_short(call):
    w = torch.randn(8, 8)
    with pytest.raises(DtypeError, match=r"floating-point|kept values may be"):
        call(w, ops.pack(w, ops.magnitude_mask(w)), torch.randn(8, 4))
