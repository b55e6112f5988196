"""Runs the CUTLASS kernels on torch tensors: choice, outputs, streams, workspaces.

Shapes: S [M, K] packed as values [M, K4/2] and metadata [k_atoms, m_atoms, 256]; B [K, N]; D [M, N].
No call waits for the GPU, and a shape seen before costs one dictionary look-up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from s24compile.errors import TargetError
from s24compile.kernels.gemm.cutlass import build, loader, tuned
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, Signature
from s24compile.kernels.gemm.cutlass.layouts import empty, like_output, operand, output

NAMES: dict[torch.dtype, Any] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
ATOM = 256
"""uint16 of metadata that describe one atom of 64 rows x 64 k."""


# For empty problems only, where there is nothing to fuse.
_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one shape of one signature runs: looked up once, then cached."""

    loaded: loader.Loaded
    raster: int
    swizzle: int
    splits: int
    stream_k: bool
    pdl: int


def mm(
    values: torch.Tensor,
    metadata: torch.Tensor,
    rows: int,
    cols: int,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    out_layout: str,
    out_dtype: torch.dtype,
    choice: tuned.Choice | None = None,
) -> torch.Tensor:
    """D = S B + bias[:, None], D row-major, or column-major with strides (1, M). `choice` overrides the tuned table."""
    if min(rows, cols, b.shape[1]) == 0:
        d = empty(rows, b.shape[1], out_layout, out_dtype, b.device).zero_()
        return d if bias is None else d.add_(bias[:, None])
    epilogue = "plain" if bias is None else "bias"
    return _run(values, metadata, rows, cols, b, epilogue, "", bias, None, out_layout, out_dtype, choice=choice)[0]


def mm_act(
    values: torch.Tensor,
    metadata: torch.Tensor,
    rows: int,
    cols: int,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    act: str,
    out_layout: str,
    choice: tuned.Choice | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Z, H): Z = S B + bias[:, None], H = act(Z), in one pass; both in B's dtype and `out_layout`.

    `act` is applied to the fp32 sum, before Z is rounded.
    """
    if min(rows, cols, b.shape[1]) == 0:
        nothing = mm(values, metadata, rows, cols, b, bias, out_layout, b.dtype)
        return nothing, _FUNCTIONS[act](nothing)
    h, z = _run(values, metadata, rows, cols, b, "act", act, bias, None, out_layout, b.dtype, choice=choice)
    assert z is not None
    return z, h


def mm_dact(
    values: torch.Tensor,
    metadata: torch.Tensor,
    rows: int,
    cols: int,
    b: torch.Tensor,
    z: torch.Tensor,
    act: str,
    out_layout: str,
    choice: tuned.Choice | None = None,
) -> torch.Tensor:
    """dZ = (S B) * act'(Z): the backward of `mm_act`, Z [M, N] in any layout (copied unless it is `out_layout`)."""
    if min(rows, cols, b.shape[1]) == 0:
        return mm(values, metadata, rows, cols, b, None, out_layout, b.dtype)
    return _run(values, metadata, rows, cols, b, "dact", act, None, z, out_layout, b.dtype, choice=choice)[0]


def mm_dact_sum(
    values: torch.Tensor,
    metadata: torch.Tensor,
    rows: int,
    cols: int,
    b: torch.Tensor,
    z: torch.Tensor,
    act: str,
    out_layout: str,
    choice: tuned.Choice | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dZ, its fp32 sums over N [M]): `mm_dact`, and the bias gradient. Sums are of dZ before it is rounded.

    The kernel sums the columns of each tile of D; the tiles of a row are added up here, always in the same order.
    """
    if min(rows, cols, b.shape[1]) == 0:
        dz = mm(values, metadata, rows, cols, b, None, out_layout, b.dtype)
        return dz, torch.zeros(rows, dtype=torch.float32, device=b.device)
    dz, partial = _run(
        values, metadata, rows, cols, b, "dact_sum", act, None, z, out_layout, b.dtype, choice=choice
    )  # fmt: skip
    assert partial is not None
    return dz, partial[:, :rows].sum(0)


def mm_add(
    values: torch.Tensor,
    metadata: torch.Tensor,
    rows: int,
    cols: int,
    b: torch.Tensor,
    c: torch.Tensor,
    beta: float,
    out_layout: str,
) -> torch.Tensor:
    """D = S B + beta C, C [M, N] of D's dtype: accumulation or a residual."""
    if min(rows, cols, b.shape[1]) == 0:
        return mm(values, metadata, rows, cols, b, None, out_layout, c.dtype).add_(c, alpha=beta)
    return _run(values, metadata, rows, cols, b, "add", "", None, c, out_layout, c.dtype, beta)[0]


def _run(
    values: torch.Tensor,
    metadata: torch.Tensor,
    m: int,
    k: int,
    b: torch.Tensor,
    epilogue: str,
    act: str,
    bias: torch.Tensor | None,
    source: torch.Tensor | None,
    out_layout: str,
    out_dtype: torch.dtype,
    beta: float = 0.0,
    choice: tuned.Choice | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    n = b.shape[1]
    device = b.get_device()
    a_major, values, a_pitch = operand(values, "k", "m")
    b_major, b, b_pitch = operand(b, "n", "k")
    bias_name = "" if bias is None else NAMES[bias.dtype]
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    plan = make_plan(values.dtype, a_major, b_major, out_layout, out_dtype, epilogue, act, bias_name, m, n, k, choice)

    target, d = output(m, n, out_layout, out_dtype, b.device)
    pitch = target.stride(0 if out_layout == "row" else 1)
    z = partial = None
    aux = source_pointer = aux_pitch = 0
    if epilogue == "act":
        z_target, z = output(m, n, out_layout, out_dtype, b.device)
        aux, aux_pitch = z_target.data_ptr(), pitch
    elif source is not None:
        source = like_output(source, target, out_layout, out_dtype)
        aux_pitch = source.stride(0 if out_layout == "row" else 1)
        aux, source_pointer = (0, source.data_ptr()) if epilogue == "add" else (source.data_ptr(), 0)
    if epilogue == "dact_sum":
        tile_m, tile_n = plan.loaded.kernel.schedule.tile
        bias = partial = b.new_empty(-(-n // tile_n), -(-m // tile_m) * tile_m, dtype=torch.float32)

    pointers = [values.data_ptr(), metadata.data_ptr(), b.data_ptr(), target.data_ptr(), source_pointer, aux]
    pointers.append(0 if bias is None else bias.data_ptr())
    strides = (a_pitch, metadata_pitch(metadata), b_pitch, pitch, aux_pitch, 0)
    submit(plan, pointers, strides, (m, n, k), metadata.shape[1], device, beta)
    if target is not d:
        d.copy_(target[:m, :n])
        if z is not None:
            z.copy_(z_target[:m, :n])
    return d, z if partial is None else partial


_NEEDS: dict[tuple[Kernel, tuple[int, int, int], int], int] = {}
"""Bytes of workspace of stream-K kernels."""


def metadata_pitch(metadata: torch.Tensor) -> int:
    """uint16 from one K atom to the next."""
    k_atoms, m_atoms = metadata.shape[0], metadata.shape[1]
    return metadata.stride(0) if k_atoms > 1 else m_atoms * ATOM


def submit(
    plan: Plan,
    pointers: Sequence[int],
    strides: Sequence[int],
    shape: tuple[int, int, int],
    m_atoms: int,
    device: int,
    beta: float = 0.0,
) -> None:
    """Launches one problem on the current stream of `device`.

    Args:
        pointers: values, metadata, B, D, C, aux, bias; 0 for what the epilogue lacks.
        strides: those of values, metadata, B, D and aux; then `Problem::other`.
        m_atoms: metadata atoms along M that the view holds.

    Raises:
        TargetError: the kernel refused the problem, or CUDA did.
    """
    stream = torch._C._cuda_getCurrentRawStream(device)
    settings = (plan.raster, plan.swizzle, plan.splits, device, _sm_count(device), m_atoms, plan.pdl)
    tail = (*strides, *shape, *settings, 1.0, beta)
    if plan.stream_k:
        key = plan.loaded.kernel, shape, plan.splits
        need = _NEEDS.get(key)
        if need is None:
            need = _NEEDS[key] = plan.loaded.workspace(loader.PROBLEM.pack(*pointers, 0, 0, *tail))
        workspace = _workspace(need, device, stream)
        problem = loader.PROBLEM.pack(*pointers, workspace.data_ptr(), need, *tail)
    else:
        problem = loader.PROBLEM.pack(*pointers, 0, 0, *tail)
    code = plan.loaded.gemm(problem, stream)
    if code != 0:
        raise TargetError(
            what=f"the kernel {plan.loaded.kernel.name} for M={shape[0]}, N={shape[1]}, K={shape[2]}",
            target=f"cuda:{device}",
            found=plan.loaded.explain(code),
            accepted="choose another provider, or report this as a bug",
        )


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
) -> Plan:
    """Chooses and loads the kernel for one shape; builds it where it is missing.

    The bias may be null in "act": the one kernel then serves both, typed by the output.
    """
    bias = bias or (NAMES[out_dtype] if epilogue == "act" else "")
    signature = Signature(NAMES[dtype], a_major, b_major, out_layout, NAMES[out_dtype], epilogue, act, bias)
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
    if build.missing_tools() is not None and build.object_path(kernel) is None:
        for schedule in tuned.schedules():
            if build.object_path(Kernel(kernel.signature, schedule)) is not None:
                return loader.load(Kernel(kernel.signature, schedule))
    return loader.load(kernel)


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
