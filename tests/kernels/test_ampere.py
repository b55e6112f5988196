"""torch's 2:4 GEMM for compute capability 8.x: what it is given, checked against torch's own rules and reading.

On a CPU a stand-in for the op asserts its rules and reads the operand as torch.sparse does. On Hopper the same CUTLASS
kernel, built by benchmarks/gemm_parts/sm80.py, multiplies; on Ampere and Ada the op itself.
"""

import itertools

import pytest
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from s24compile.kernels import ops as raw
from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.gemm import torch as ampere
from s24compile.kernels.packed import Packed24
from s24compile.kernels.padding import dense_operand
from s24compile.kernels.target import Target
from tests.closeness import assert_as_close_as_torch
from tests.kernels.oracles import two_largest

SHAPES = [(64, 128, 8), (72, 136, 24), (4, 4, 1), (20, 22, 9), (160, 200, 33), (32, 64, 0), (0, 64, 8), (32, 0, 8)]
LAYOUTS = {
    "row": lambda k, n: torch.randn(k, n),
    "column": lambda k, n: torch.randn(n, k).t(),
    "odd offset": lambda k, n: torch.randn(n * k + 3)[3:].view(n, k).t(),
    "range": lambda k, n: torch.randn(k, n + 5)[:, 2 : n + 2],
    "strided": lambda k, n: torch.randn(2 * k, 2 * n)[::2, ::2],
    "expanded": lambda k, n: torch.randn(k, 1).expand(k, n),
}


def strict_multiply(values, metadata, b, bias):
    """What the op accepts (SparseSemiStructuredOps.cu and CUTLASS's can_implement), and what it then gives."""
    (m, kept), (k, n) = values.shape, b.shape
    assert kept == k // 2
    assert (m % 32, k % 64, n % 8) == (0, 0, 0)
    assert (values.stride(1), values.stride(0) % 8, values.data_ptr() % 16) == (1, 0, 0)
    assert b.is_contiguous() or b.t().is_contiguous(), "the kernel reads one pitch"
    assert b.data_ptr() % 16 == 0
    assert (metadata.dtype, metadata.shape, metadata.stride()) == (torch.int16, (m, k // 16), (k // 16, 1))
    dense = sparse_semi_structured_to_dense_cutlass(values.contiguous(), metadata).float()
    c = dense @ b.float()
    if bias is not None:
        assert (bias.dtype, bias.shape, bias.stride()) == (b.dtype, (m,), (1,))
        c = c + bias.float()[:, None]
    return c.to(b.dtype)


@pytest.fixture
def mm(device, monkeypatch):
    """The provider, on whatever can multiply here."""
    if device == "cpu":
        monkeypatch.setattr(torch, "_sparse_semi_structured_mm", lambda v, e, b: strict_multiply(v, e, b, None))
        monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", lambda c, v, e, b: strict_multiply(v, e, b, c))
    elif torch.cuda.get_device_capability()[0] != 8:
        from benchmarks.gemm_parts.sm80 import Oracle, build_oracle

        monkeypatch.setattr(ampere, "multiply", Oracle(build_oracle()))
    return ampere.mm


def operands(m, k, dtype, device):
    w = torch.randn(m, k).to(device, dtype)
    mask = two_largest(torch.nn.functional.pad(w, (0, -k % 4)))[:, :k]
    return torch.where(mask, w, 0.0), raw.pack(w, mask, dtype, "sm80")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("out_layout", ["row", "col"])
def test_multiply_at_every_size(mm, dtype, shape, out_layout, device):
    m, k, n = shape
    dense, packed = operands(m, k, dtype, device)
    b, bias = torch.randn(n, k).to(device, dtype).t(), torch.randn(m).to(device)
    for added, out in itertools.product((None, bias.to(dtype), bias), (dtype, torch.float32)):
        found = mm(Packed24.of(packed[0], packed[1], m, k, "sm80"), b, added, out_layout, out)
        rounded = 0 if added is None else added.to(dtype)[:, None]
        exact = dense.double() @ b.double() + (0 if added is None else added.double()[:, None])
        assert_as_close_as_torch(found, (dense @ b + rounded).to(out), exact)
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(t) for t in (*packed, b)]
            fake = raw.mm(*fakes[:2], m, k, "sm80", fakes[2], None, out_layout, out)
        assert found.stride() == fake.stride() or not found.numel(), "the compiler plans with the fake strides"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_layout", ["row", "col"])
def test_take_any_strides(mm, layout, out_layout, device):
    dense, packed = operands(64, 128, torch.bfloat16, device)
    b = LAYOUTS[layout](128, 24).to(torch.bfloat16).to(device)
    found = mm(Packed24.of(packed[0], packed[1], 64, 128, "sm80"), b, None, out_layout, torch.bfloat16)
    assert_as_close_as_torch(found, dense @ b, dense.double() @ b.double())


def test_copy_nothing_that_fits():
    _, (values, metadata) = operands(64, 128, torch.bfloat16, "cpu")
    assert [a is b for a, b in zip(ampere.sparse_operand(values, metadata, 64, 128), (values, metadata), strict=True)]
    x = torch.randn(24, 128)
    assert dense_operand(x.t(), 128, 24).data_ptr() == x.data_ptr()
    assert dense_operand(x, 24, 128) is x


@pytest.mark.parametrize("shape", [(20, 22), (72, 136), (33, 200)], ids=str)
def test_pad_with_codes_that_are_codes(shape):
    """Metadata of 0 would name one place twice, which the hardware does not define."""
    dense, (values, metadata) = operands(shape[0], shape[1], torch.float16, "cpu")
    m, k = -(-shape[0] // 32) * 32, -(-shape[1] // 64) * 64
    padded = ampere.sparse_operand(values, metadata, m, k)
    codes = FORMATS["sm80"].decode(padded[1], m, k, torch.float16)
    assert ((codes & 3) < (codes >> 2)).all()
    whole = sparse_semi_structured_to_dense_cutlass(*padded)
    assert torch.equal(whole[: shape[0], : shape[1]], dense)
    assert not whole[shape[0] :].any()
    assert not whole[:, shape[1] :].any()


def packed(dtype, format):
    """Buffers of an operand [64, 128]."""
    return Packed24.of(*FORMATS[format].empty(64, 128, dtype, torch.device("cpu")), 64, 128, format)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89"])
def test_choose_torch_on_ampere_and_ada(arch):
    target = Target.parse(arch)
    _, packed = operands(64, 128, torch.bfloat16, "cpu")
    b = torch.zeros(128, 8, dtype=torch.bfloat16)
    choice = providers.choose("mm", *packed, 64, 128, target.format, b, None, "col", torch.float32, target=target)
    assert choice.provider.name == "torch"
    assert "sm_90" in choice.refused["cutlass"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": packed(torch.bfloat16, "sm90")}, "sm80 format"),
        ({"a": packed(torch.float32, "sm80")}, "bf16 and fp16"),
        ({"b": torch.zeros(128, 7)}, "two dtypes"),
        ({"out_dtype": torch.float64}, "not float64"),
        ({"bias": torch.zeros(64, dtype=torch.float16)}, "bias"),
    ],
)
def test_refuse_with_a_sentence(changes, words):
    given = {
        "a": packed(torch.bfloat16, "sm80"), "b": torch.zeros(128, 7, dtype=torch.bfloat16), "bias": None,
        "out_layout": "col", "out_dtype": torch.bfloat16,
    }  # fmt: skip
    assert ampere.supports(**given) is None
    assert words in ampere.supports(**(given | changes))
