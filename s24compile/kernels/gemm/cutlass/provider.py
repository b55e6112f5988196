"""The provider "cutlass" of the GEMM ops: which calls it takes, and why not the others."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.gemm.cutlass import gated, launch, objects, tools
from s24compile.kernels.gemm.cutlass.instantiations import FUNCTIONS
from s24compile.kernels.gemm.dtypes import refuse_dtypes, short
from s24compile.kernels.packed import Packed24
from s24compile.kernels.providers import Provider
from s24compile.kernels.target import Target


def supported(target: Target) -> str | None:
    """On the machine itself, kernels must be built or buildable."""
    # A Target may stand for another machine (lowering tested without a GPU): then our own tools say nothing.
    missing = tools.missing_tools() if torch.cuda.is_available() else None
    if missing is not None and not objects.any_prebuilt():
        return f"{missing} and no kernel is built: pip install 's24compile[cuda]'"
    return None


def supports(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> str | None:
    """16-bit operands in the "sm90" format; D in their dtype or fp32. Any shape and strides."""
    if a.format == "sm90_gated" and out_layout == "col" and out_dtype == a.dtype and bias is None:
        return supports_glu(a, b, "relu", "first")
    if a.format != "sm90":
        return f"it reads the sm90 format, not {a.format}"
    return refuse_dtypes(a, b, bias, out_dtype)


def mm(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """`s24::mm` on the CUTLASS kernels. Interleaved halves are put in order by GLU's epilogue, its H left unused."""
    if a.format == "sm90_gated":
        return gated.mm_glu(a, b, "relu", "first")[0]
    return launch.mm(a, b, bias, out_layout, out_dtype)


def supports_act(a: Packed24, b: Tensor, bias: Tensor | None, act: str, out_layout: str) -> str | None:
    """As `supports`; Z and H are in B's dtype, and the epilogue must know the activation."""
    if act not in FUNCTIONS:
        return f"it fuses {', '.join(FUNCTIONS)}, not {act}"
    return supports(a, b, bias, out_layout, b.dtype)


def supports_dact(a: Packed24, b: Tensor, z: Tensor, act: str, out_layout: str) -> str | None:
    """As `supports`; Z is in B's dtype too."""
    if z.dtype != b.dtype:
        return f"Z is in {short(z.dtype)} and the operands in {short(b.dtype)}"
    return supports_act(a, b, None, act, out_layout)


def supports_add(a: Packed24, b: Tensor, c: Tensor) -> str | None:
    """As `supports`; D is in C's dtype."""
    return supports(a, b, None, "col", c.dtype)


def supports_glu(a: Packed24, b: Tensor, act: str, gate: str) -> str | None:
    """16-bit operands, the weight's halves interleaved, F a multiple of 8."""
    if a.format != "sm90_gated":
        return f"it reads the sm90_gated format, not {a.format}"
    if a.shape[0] % 16:
        return f"it interleaves halves by 8 rows, and {a.shape[0]} is no multiple of 16"
    return supports_act(a._replace(format="sm90"), b, None, act, "col")


def supports_dglu(a: Packed24, b: Tensor, z: Tensor, act: str, gate: str) -> str | None:
    """As `supports_dact`; TMA asks for halves that begin on 16 bytes."""
    if a.shape[0] % 8:
        return f"the halves of dZ begin on 16 bytes, and F = {a.shape[0]} is no multiple of 8"
    return supports_dact(a, b, z, act, "col")


PROVIDERS = {
    "mm": Provider("cutlass", mm, supports, supported),
    "mm_act": Provider("cutlass", launch.mm_act, supports_act, supported),
    "mm_dact": Provider("cutlass", launch.mm_dact, supports_dact, supported),
    "mm_dact_sum": Provider("cutlass", launch.mm_dact_sum, supports_dact, supported),
    "mm_add": Provider("cutlass", launch.mm_add, supports_add, supported),
    "mm_glu": Provider("cutlass", gated.mm_glu, supports_glu, supported),
    "mm_dglu": Provider("cutlass", gated.mm_dglu, supports_dglu, supported),
}
"""Op name to provider: what `kernels.providers.find` reads."""
