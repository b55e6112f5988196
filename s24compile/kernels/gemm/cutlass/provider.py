"""The provider "cutlass" of the GEMM ops: which calls it takes, and why not the others."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.gemm.cutlass import gated, launch, objects, tools
from s24compile.kernels.gemm.cutlass.instantiations import ACTIVATIONS
from s24compile.kernels.gemm.dtypes import refuse_dtypes, short
from s24compile.kernels.providers import Provider
from s24compile.kernels.target import Target


def supported(target: Target) -> str | None:
    """Hopper only; on the machine itself, kernels must be built or buildable."""
    if target.arch != (9, 0):
        return f"the CUTLASS kernels are for sm_90, this is {target}"
    # A Target may stand for another machine (lowering tested without a GPU): then our own tools say nothing.
    missing = tools.missing_tools() if torch.cuda.is_available() else None
    if missing is not None and not objects.any_prebuilt():
        return f"{missing} and no kernel is built: pip install 's24compile[cuda]'"
    return None


def supports(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    bias: Tensor | None,
    out_layout: str,
    out_dtype: torch.dtype,
) -> str | None:
    """16-bit operands in the "sm90" format; D in their dtype or fp32. Any shape and strides."""
    if format == "sm90_gated" and out_layout == "col" and out_dtype == values.dtype and bias is None:
        return supports_glu(values, metadata, rows, cols, format, b, "relu", "first")
    if format != "sm90":
        return f"it reads the sm90 format, not {format}"
    return refuse_dtypes(values, b, bias, out_dtype)


def mm(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    bias: Tensor | None,
    out_layout: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """`s24::mm` on the CUTLASS kernels. Interleaved halves are put in order by GLU's epilogue, its H left unused."""
    if format == "sm90_gated":
        return gated.mm_glu(values, metadata, rows, cols, b, "relu", "first")[0]
    return launch.mm(values, metadata, rows, cols, b, bias, out_layout, out_dtype)


def supports_act(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    bias: Tensor | None,
    act: str,
    out_layout: str,
) -> str | None:
    """As `supports`; Z and H are in B's dtype, and the epilogue must know the activation."""
    if act not in ACTIVATIONS:
        return f"it fuses {', '.join(ACTIVATIONS)}, not {act}"
    return supports(values, metadata, rows, cols, format, b, bias, out_layout, b.dtype)


def mm_act(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    bias: Tensor | None,
    act: str,
    out_layout: str,
) -> tuple[Tensor, Tensor]:
    """`s24::mm_act` on the CUTLASS kernels."""
    return launch.mm_act(values, metadata, rows, cols, b, bias, act, out_layout)


def supports_dact(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    z: Tensor,
    act: str,
    out_layout: str,
) -> str | None:
    """As `supports`; Z is in B's dtype too."""
    if z.dtype != b.dtype:
        return f"Z is in {short(z.dtype)} and the operands in {short(b.dtype)}"
    return supports_act(values, metadata, rows, cols, format, b, None, act, out_layout)


def mm_dact(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    z: Tensor,
    act: str,
    out_layout: str,
) -> Tensor:
    """`s24::mm_dact` on the CUTLASS kernels."""
    return launch.mm_dact(values, metadata, rows, cols, b, z, act, out_layout)


def mm_dact_sum(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    z: Tensor,
    act: str,
    out_layout: str,
) -> tuple[Tensor, Tensor]:
    """`s24::mm_dact_sum` on the CUTLASS kernels."""
    return launch.mm_dact_sum(values, metadata, rows, cols, b, z, act, out_layout)


def supports_add(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, c: Tensor
) -> str | None:
    """As `supports`; D is in C's dtype."""
    return supports(values, metadata, rows, cols, format, b, None, "col", c.dtype)


def mm_add(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, c: Tensor) -> Tensor:
    """`s24::mm_add` on the CUTLASS kernels."""
    return launch.mm_add(values, metadata, rows, cols, b, c, 1.0, "col")


def supports_glu(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, act: str, gate: str
) -> str | None:
    """16-bit operands, the weight's halves interleaved, F a multiple of 8."""
    if format != "sm90_gated":
        return f"it reads the sm90_gated format, not {format}"
    if rows % 16:
        return f"it interleaves halves by 8 rows, and {rows} is no multiple of 16"
    return supports_act(values, metadata, rows, cols, "sm90", b, None, act, "col")


def mm_glu(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, act: str, gate: str
) -> tuple[Tensor, Tensor]:
    """`s24::mm_glu` on the CUTLASS kernels."""
    return gated.mm_glu(values, metadata, rows, cols, b, act, gate)


def supports_dglu(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, z: Tensor, act: str, gate: str
) -> str | None:
    """As `supports_dact`; TMA asks for halves that begin on 16 bytes."""
    if rows % 8:
        return f"the halves of dZ begin on 16 bytes, and F = {rows} is no multiple of 8"
    return supports_dact(values, metadata, rows, cols, format, b, z, act, "col")


def mm_dglu(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, z: Tensor, act: str, gate: str
) -> Tensor:
    """`s24::mm_dglu` on the CUTLASS kernels."""
    return gated.mm_dglu(values, metadata, rows, cols, b, z, act, gate)


PROVIDERS = {
    "mm": Provider("cutlass", mm, supported, supports),
    "mm_act": Provider("cutlass", mm_act, supported, supports_act),
    "mm_dact": Provider("cutlass", mm_dact, supported, supports_dact),
    "mm_dact_sum": Provider("cutlass", mm_dact_sum, supported, supports_dact),
    "mm_add": Provider("cutlass", mm_add, supported, supports_add),
    "mm_glu": Provider("cutlass", mm_glu, supported, supports_glu),
    "mm_dglu": Provider("cutlass", mm_dglu, supported, supports_dglu),
}
"""Op name to provider: what `kernels.providers.find` reads."""
