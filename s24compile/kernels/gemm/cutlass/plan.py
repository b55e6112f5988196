"""From a problem to a launch: which kernel one shape runs, its workspace, and the call into the loaded object.

No call waits for the GPU, and a shape seen before costs one dictionary look-up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from s24compile.errors import TargetError
from s24compile.kernels.gemm.cutlass import loader, objects, tools, tuned
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, Signature
from s24compile.torch_internals.products import raw_stream

NAMES: dict[torch.dtype, Any] = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32",
    torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2",
}  # fmt: skip


class Scales(NamedTuple):
    """What 8-bit operands have beside their values."""

    descale_a: torch.Tensor
    """fp32 [1], as `descale_b`: what S's values are multiplied by."""
    descale_b: torch.Tensor
    exact: bool
    """Whether sums are kept in fp32 registers: `Signature.sums`."""
    amax: torch.Tensor | None = None
    """fp32 [1], 0 before: receives that of H or dZ."""

    @property
    def pointers(self) -> tuple[int, int, int]:
        """As `submit` takes them."""
        return self.descale_a.data_ptr(), self.descale_b.data_ptr(), 0 if self.amax is None else self.amax.data_ptr()


def sums_of(scales: Scales | None) -> str:
    """`Signature.sums` of a product with these scales, or of 16-bit operands."""
    return "exact" if scales is not None and scales.exact else ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one shape of one signature runs: looked up once, then cached."""

    loaded: loader.Loaded
    raster: int
    swizzle: int
    splits: int
    stream_k: bool
    pdl: int


@functools.lru_cache(maxsize=4096)
def make_plan(
    dtype: torch.dtype,
    a_major: Any,
    b_major: Any,
    out_layout: Any,
    out_dtype: torch.dtype,
    epilogue: Any,
    act: str,
    bias: Any,
    m: int,
    n: int,
    k: int,
    choice: tuned.Choice | None,
    other: torch.dtype | None = None,
    sums: Any = "",
) -> Plan:
    """Chooses and loads the kernel for one shape; builds it where it is missing.

    The bias may be null in "act": the one kernel then serves both, typed by the output.

    Args:
        other: B's dtype, where it is not `dtype`; sums: see `Signature`.
    """
    bias = bias or (NAMES[out_dtype] if epilogue == "act" else "")
    types = NAMES[dtype], a_major, b_major, out_layout, NAMES[out_dtype]
    signature = Signature(*types, epilogue, act, bias, "" if other in (None, dtype) else NAMES[other], sums)
    choice = choice or tuned.choose(signature, m, n, k)
    loaded = _load(Kernel(signature, choice.schedule))
    return Plan(
        loaded,
        int(choice.raster == "n"),
        choice.swizzle,
        choice.splits,
        loaded.kernel.schedule.stream_k,
        int(choice.pdl),
    )


def _load(kernel: Kernel) -> loader.Loaded:
    """`kernel`, or where it cannot be built (no nvcc) another built schedule of the same signature.

    Raises:
        BuildError: neither is possible.
    """
    if tools.missing_tools() is not None and objects.object_path(kernel) is None:
        for schedule in tuned.schedules(kernel.signature.narrow):
            if objects.object_path(Kernel(kernel.signature, schedule)) is not None:
                return loader.load(Kernel(kernel.signature, schedule))
    return loader.load(kernel)


def metadata_pitch(metadata: torch.Tensor) -> int:
    """Cells from one K atom to the next."""
    k_atoms, m_atoms, cells = metadata.shape
    return metadata.stride(0) if k_atoms > 1 else m_atoms * cells


_NEEDS: dict[tuple[Kernel, tuple[int, int, int], int], int] = {}
"""Bytes of workspace of stream-K kernels."""


def submit(
    plan: Plan,
    pointers: Sequence[int],
    strides: Sequence[int],
    shape: tuple[int, int, int],
    m_atoms: int,
    device: int,
    beta: float = 0.0,
    scales: Scales | None = None,
) -> None:
    """Launches one problem on the current stream of `device`.

    Args:
        pointers: values, metadata, B, D, C, aux, bias; 0 for what the epilogue lacks.
        scales: of 8-bit operands.
        strides: those of values, metadata, B, D and aux; then `Problem::other`.
        m_atoms: metadata atoms along M that the view holds.

    Raises:
        TargetError: the kernel refused the problem, or CUDA did.
    """
    stream = raw_stream(device)
    settings = (plan.raster, plan.swizzle, plan.splits, device, _sm_count(device), m_atoms, plan.pdl)
    tail = (*strides, *shape, *settings, 1.0, beta)
    narrow = (0, 0, 0) if scales is None else scales.pointers
    if plan.stream_k:
        key = plan.loaded.kernel, shape, plan.splits
        need = _NEEDS.get(key)
        if need is None:
            need = _NEEDS[key] = plan.loaded.workspace(loader.PROBLEM.pack(*pointers, *narrow, 0, 0, *tail))
        workspace = _workspace(need, device, stream)
        problem = loader.PROBLEM.pack(*pointers, *narrow, workspace.data_ptr(), need, *tail)
    else:
        problem = loader.PROBLEM.pack(*pointers, *narrow, 0, 0, *tail)
    code = plan.loaded.gemm(problem, stream)
    if code != 0:
        raise TargetError(
            what=f"the kernel {plan.loaded.kernel.name} for M={shape[0]}, N={shape[1]}, K={shape[2]}",
            target=f"cuda:{device}",
            found=plan.loaded.explain(code),
            accepted="choose another provider, or report this as a bug",
        )


@functools.cache
def _sm_count(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


_workspaces: dict[tuple[int, int], torch.Tensor] = {}


def _workspace(need: int, device: int, stream: int) -> torch.Tensor:
    """Scratch memory, one buffer per device and stream: kernels of one stream run one after the other.

    Under CUDA-graph capture it comes from the graph's own pool instead, since the graph may be replayed elsewhere.
    """
    if torch.cuda.is_current_stream_capturing():
        return torch.empty(need, dtype=torch.uint8, device=f"cuda:{device}")
    workspace = _workspaces.get((device, stream))
    if workspace is None or workspace.numel() < need:
        workspace = _workspaces[device, stream] = torch.empty(need, dtype=torch.uint8, device=f"cuda:{device}")
    return workspace
