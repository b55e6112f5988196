"""Correctness before any timing: every built kernel against fp64, beside cuBLAS's own error on the same operands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.gemm_parts.operands import Sparse, random_sparse, relative_error
from s24compile.kernels.activations import ACTIVATIONS
from s24compile.kernels.gemm.cutlass import gated, launch, tuned
from s24compile.kernels.gemm.cutlass.instantiations import Kernel

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SIZES = (
    (256, 512, 512), (768, 4096, 3072), (1600, 1024, 1600), (64, 256, 64), (4, 8, 4), (4, 1, 4), (12, 7, 20),
    (128, 31, 64), (320, 72, 192), (1000, 200, 1000), (264, 4224, 136), (100, 1, 36), (3072, 768, 1031), (5, 9, 6),
)  # fmt: skip
"""(m, n, k): whole tiles, ragged tiles, the format's smallest multiples, odd n, and k that is no multiple of 4."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison. Passes when `error` is at most twice `dense_error` (cuBLAS's, or eager torch's)."""

    kernel: str
    size: tuple[int, int, int]
    error: float
    dense_error: float

    @property
    def passes(self) -> bool:
        """Whether it is correct; NaN is not."""
        return self.error <= 2 * self.dense_error + 1e-6


def slope(name: str, z: Tensor) -> Tensor:
    """Its derivative, by autograd."""
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(ACTIVATIONS[name].value(leaf).sum(), leaf)[0]


def check_kernel(kernel: Kernel, size: tuple[int, int, int], device: str = "cuda") -> Iterable[Check]:
    """Runs `kernel` on fresh random operands of `size` and compares everything that it writes."""
    signature, (m, n, k) = kernel.signature, size
    if signature.epilogue in ("glu", "dglu"):
        yield from check_gated(kernel, size, device)
        return
    dtype, out = DTYPES[signature.dtype], DTYPES[signature.out]
    choice = tuned.Choice(kernel.schedule)
    s, b = random_sparse(m, k, dtype, device, signature.a), random_dense(k, n, dtype, device, signature.b)
    dense = s.dense()
    product = dense.double() @ b.double()
    bias = torch.randn(m, device=device, dtype=DTYPES[signature.bias]) if signature.bias else None
    shifted = product if bias is None else product + bias.double()[:, None]

    def report(what: str, got: Tensor, exact: Tensor, eager: Tensor) -> Check:
        return Check(f"{kernel.name} {what}", size, relative_error(got, exact), relative_error(eager, exact))

    eager_z = (dense @ b).to(out) if bias is None else ((dense @ b).float() + bias.float()[:, None]).to(out)
    packed = (s.packed(), b)
    if signature.epilogue in ("plain", "bias"):
        yield report("D", launch.mm(*packed, bias, signature.d, out, choice), shifted, eager_z)
    elif signature.epilogue == "act":
        z, h = launch.mm_act(*packed, bias, signature.act, signature.d, choice)
        yield report("Z", z, shifted, eager_z)
        yield report("H", h, ACTIVATIONS[signature.act].value(shifted), ACTIVATIONS[signature.act].value(eager_z))
    elif signature.epilogue in ("dact", "dact_sum"):
        z = _laid_out(torch.randn(m, n, device=device, dtype=out), signature.d)
        eager = (eager_z.float() * slope(signature.act, z.float())).to(out)
        exact = product * slope(signature.act, z.double())
        if signature.epilogue == "dact":
            got = launch.mm_dact(*packed, z, signature.act, signature.d, choice)
        else:
            got, sums = launch.mm_dact_sum(*packed, z, signature.act, signature.d, choice)
            yield report("db", sums, exact.sum(1), eager.sum(1, dtype=torch.float32))
        yield report("dZ", got, exact, eager)
    else:
        c = _laid_out(torch.randn(m, n, device=device, dtype=out), signature.d)
        got = launch.mm_add(*packed, c, 1.0, signature.d)
        yield report("D", got, product + c.double(), (eager_z.float() + c.float()).to(out))


def random_dense(k: int, n: int, dtype: torch.dtype, device: str, major: str) -> Tensor:
    """B [k, n], contiguous along `major`."""
    b = torch.randn(k, n, device=device, dtype=dtype)
    return b if major == "n" else b.t().contiguous().t()


def check_gated(kernel: Kernel, size: tuple[int, int, int], device: str = "cuda") -> Iterable[Check]:
    """`check_kernel` of a gated epilogue; m is rounded up to what the format and TMA take."""
    signature, (m, n, k) = kernel.signature, size
    unit = 16 if signature.epilogue == "glu" else 8
    m = (m + unit - 1) // unit * unit
    dtype, act = DTYPES[signature.dtype], signature.act
    choice = tuned.Choice(kernel.schedule)
    s, b = random_sparse(m, k, dtype, device), random_dense(k, n, dtype, device, signature.b)
    exact, eager = s.dense().double() @ b.double(), s.dense() @ b

    def report(what: str, got: Tensor, exact: Tensor, eager: Tensor) -> Check:
        return Check(f"{kernel.name} {what}", size, relative_error(got, exact), relative_error(eager, exact))

    for gate in ("first", "second"):
        if signature.epilogue == "glu":
            # Stored rows alternate by eight between the halves.
            exact_z, eager_z = (x.unflatten(0, (-1, 2, 8)).transpose(0, 1).flatten(0, 2) for x in (exact, eager))
            z, h = gated.mm_glu(s.packed("sm90_gated"), b, act, gate, choice)
            yield report(f"Z, gate {gate}", z, exact_z, eager_z)
            yield report(f"H, gate {gate}", h, glu(exact_z, act, gate), glu(eager_z.float(), act, gate).to(dtype))
        else:
            z = torch.randn(n, 2 * m, device=device, dtype=dtype).t()
            dz = gated.mm_dglu(s.packed(), b, z, act, gate, choice)
            wide = glu_gradient(eager.float(), z.float(), act, gate)
            yield report(f"dZ, gate {gate}", dz, glu_gradient(exact, z.double(), act, gate), wide.to(dtype))


def glu(z: Tensor, act: str, gate: str) -> Tensor:
    """H [F, n] of Z [2F, n]."""
    first, second = z.chunk(2)
    return ACTIVATIONS[act].value(first) * second if gate == "first" else first * ACTIVATIONS[act].value(second)


def glu_gradient(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """dZ [2F, n], by autograd."""
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(glu(leaf, act, gate), leaf, dh)[0]


def _laid_out(t: Tensor, layout: str) -> Tensor:
    return t if layout == "row" else t.t().contiguous().t()


def check_views(device: str = "cuda") -> Iterable[Check]:
    """Operands that are views: odd storage offsets, expanded rows, row ranges of a larger packed operand."""
    m, n, k = 256, 200, 192
    dtype = torch.bfloat16
    s = random_sparse(m, k, dtype, device)
    flat = torch.randn(n * k + 3, device=device, dtype=dtype)
    views = {
        "odd offset": flat[3:].view(n, k).t(),
        "expanded": torch.randn(1, k, device=device, dtype=dtype).expand(n, k).t(),
        "strided": torch.randn(2 * n, 2 * k, device=device, dtype=dtype)[::2, ::2].t(),
        "column range": torch.randn(n, 3 * k, device=device, dtype=dtype)[:, k : 2 * k].t(),
    }
    for name, b in views.items():
        for layout in ("row", "col"):
            exact = s.dense().double() @ b.double()
            got = launch.mm(s.packed(), b, None, layout, dtype)
            yield Check(
                f"view: {name}, {layout}", (m, n, k), relative_error(got, exact), relative_error(s.dense() @ b, exact)
            )
    part = Sparse(s.values[64:192], s.metadata[:, 1:3], 128, k, s.codes[64:192])
    exact = part.dense().double() @ views["column range"].double()
    got = launch.mm(part.packed(), views["column range"], None, "row", dtype)
    yield Check("view: rows 64-192", (128, n, k), relative_error(got, exact), relative_error(exact.to(dtype), exact))
