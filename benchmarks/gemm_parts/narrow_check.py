"""Correctness of the kernels of eight-bit operands: against fp64, beside cuBLASLt's own error on the same operands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.gemm_parts.check import DTYPES, Check, glu, glu_gradient, slope
from benchmarks.gemm_parts.narrow import random_pair
from benchmarks.gemm_parts.operands import relative_error
from s24compile.kernels import providers
from s24compile.kernels.activations import ACTIVATIONS
from s24compile.kernels.gemm.cutlass import scaled
from s24compile.kernels.gemm.cutlass.instantiations import Kernel
from s24compile.kernels.gemm.cutlass.tuned import Choice
from s24compile.kernels.packed import ScaledPair

FITTED = 2.0**-11
"""Of an amax, relatively: activations.cuh fits its functions to 1e-4; the rest is what they are given."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What a kernel is given beside its choice."""

    kernel: Kernel
    pair: ScaledPair
    bias: Tensor | None
    source: Tensor | None
    """Z or C."""
    gate: str

    def found(self) -> dict[str, Tensor]:
        """All that the kernel writes."""
        s, choice = self.kernel.signature, Choice(self.kernel.schedule)
        out, exact, source, pair = DTYPES[s.out], bool(s.sums), self.source, self.pair
        if s.epilogue in ("plain", "bias"):
            return {"D": scaled.scaled_mm(pair, self.bias, s.d, out, exact, choice)}
        if s.epilogue == "act":
            names, results = "Z H amax", scaled.scaled_mm_act(pair, self.bias, s.act, s.d, out, exact, choice)
        elif s.epilogue == "glu":
            names, results = "Z H amax", scaled.scaled_mm_glu(pair, s.act, self.gate, out, exact, choice)
        else:
            assert source is not None
            if s.epilogue == "add":
                return {"D": scaled.scaled_mm_add(pair, source, exact, choice)}
            if s.epilogue == "dglu":
                dz, amax = scaled.scaled_mm_dglu(pair, source, s.act, self.gate, exact, choice)
                return {"dZ": dz, "amax": amax}
            sums = s.epilogue == "dact_sum"
            names, results = "dZ db amax", scaled.scaled_mm_dact(pair, source, s.act, s.d, sums, exact, choice)
        return dict(zip(names.split(), results, strict=True))

    def expected(self, product: Tensor) -> dict[str, Tensor]:
        """The same from A B with its scales, in the product's dtype."""
        s = self.kernel.signature
        z = product if self.bias is None else product + self.bias.to(product.dtype)[:, None]
        source = None if self.source is None else self.source.to(product.dtype)
        if s.epilogue in ("plain", "bias"):
            return {"D": z}
        if s.epilogue == "act":
            h = ACTIVATIONS[s.act].value(z)
            return {"Z": z, "H": h, "amax": h.abs().amax()}
        if s.epilogue == "glu":
            # Stored rows alternate by eight between the halves.
            z = z.unflatten(0, (-1, 2, 8)).transpose(0, 1).flatten(0, 2)
            h = glu(z, s.act, self.gate)
            return {"Z": z, "H": h, "amax": h.abs().amax()}
        assert source is not None
        if s.epilogue == "add":
            return {"D": z + source}
        if s.epilogue == "dglu":
            dz = glu_gradient(z, source, s.act, self.gate)
            return {"dZ": dz, "amax": dz.abs().amax()}
        dz = z * slope(s.act, source)
        sums = dz.sum(1) if s.epilogue == "dact_sum" else dz.new_empty(0)
        return {"dZ": dz, "db": sums, "amax": dz.abs().amax()}


def check_narrow(kernel: Kernel, size: tuple[int, int, int], device: str = "cuda") -> Iterable[Check]:
    """Runs `kernel` on fresh random operands of `size` and compares everything that it writes.

    m is rounded up to what a gated format, or TMA, takes.
    """
    signature, (m, n, k) = kernel.signature, size
    unit = {"glu": 16, "dglu": 8}.get(signature.epilogue, 1)
    m = (m + unit - 1) // unit * unit
    types = signature.dtype, signature.other or signature.dtype
    s, pair = random_pair(m, n, k, types, "sm90_gated" if signature.epilogue == "glu" else "sm90", device)
    bias = torch.randn(m, device=device, dtype=DTYPES[signature.bias]) if signature.bias else None
    wide = {"dact": m, "dact_sum": m, "add": m, "dglu": 2 * m}.get(signature.epilogue)
    source = None if wide is None else torch.randn(n, wide, device=device, dtype=DTYPES[signature.out]).t()
    dense = s.dense(torch.float32)
    exact = dense.double() @ pair.b.double() * (pair.descale_a * pair.descale_b).double()
    # What the tensor cores' sums are off by.
    cublas = providers.kernel("scaled_dense", "cublas")(
        dense.to(pair.a.dtype), pair.descale_a, pair.b, pair.descale_b, None, torch.float32, bool(signature.sums)
    )
    for gate in ("first", "second") if signature.epilogue in ("glu", "dglu") else ("",):
        case = Case(kernel, pair, bias, source, gate)
        ideal, peer = case.expected(exact), case.expected(cublas)
        for name, got in case.found().items():
            error = relative_error(got.view(ideal[name].shape), ideal[name])
            peers = relative_error(peer[name].to(got.dtype), ideal[name])
            what = f"{kernel.name} {name}{f', gate {gate}' if gate else ''}"
            yield Check(what, (m, n, k), error, max(peers, FITTED) if name == "amax" else peers)
