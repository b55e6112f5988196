"""Tile sizes and warps of the Triton kernels, by kernel and element size, and how they are launched."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton.language as tl

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclasses.dataclass(frozen=True)
class Tile:
    """One launch configuration: the tile's extent across and along the contiguous dim, warps per program, and a limit
    of registers per thread where the compiler would take so many that too few programs fit."""

    rows: int
    columns: int
    warps: int
    registers: int | None = None


# Swept on an H100 80GB HBM3 (700 W) with Triton 3.6 and bf16 unless noted, 2026-11-21, benchmarks/memory_sweep.py.
BLOCKS_SEARCH = Tile(64, 64, 2, 128)  # 124 us for 8192 x 8192; (64, 64, 4): 143 us
BLOCKS_SEARCH_WIDE = Tile(64, 64, 4)  # fp32: 168 us; the tile above spills there and takes 366 us
MANY_SEARCH = Tile(64, 64, 2, 128)  # fp32, 24 weights of 3072 x 768: 148 us, 1.25 times the bandwidth bound
BLOCKS_GIVEN = Tile(64, 64, 4)
ROWS = Tile(64, 64, 2, 96)  # 160 us for 16384 x 8192; without the limit 173 us, (64, 128, 8): 183 us
ROWS_SUMS = Tile(64, 64, 4)  # the sums need 30 registers more; not swept
ROWS_ALONG = Tile(64, 128, 4)
GLU = Tile(2, 1024, 4)
GLU_GRADIENT = Tile(2, 1024, 4)
GLU_TURNED = Tile(128, 64, 16)
GLU_GRADIENT_TURNED = Tile(128, 64, 16)
UNPACK = Tile(8, 128, 4)  # columns: of groups; not swept
DECAY = Tile(2, 1024, 4)
SCALE = Tile(8, 512, 4)  # this and the next two: not measured yet
SCALE_TURNED = Tile(128, 32, 4)
FLIPS = Tile(1, 16384, 4)


def launch(kernel: Any, programs: int, tile: Tile, device: torch.device, *args: Any, **constants: Any) -> None:
    """Runs `programs` programs of a kernel on `device`, whichever device is current."""
    if programs == 0:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(kernel, programs, tile, device, args, constants)
    else:
        _launch(kernel, programs, tile, device, args, constants)


_READY: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}
"""Compiled kernels with the values of their constants, by all that Triton specialises a kernel for."""


def _launch(
    kernel: Any, programs: int, tile: Tile, device: torch.device, args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Finds the compiled kernel again by itself: Triton's own way there takes 80 us of CPU on a slow host."""
    if device.type != "cuda":
        _compile(kernel, programs, tile, args, constants)
        return
    values: list[Any] = []
    kinds: list[Any] = []
    for arg in args:
        if type(arg) is int:
            values.append(arg)
            kinds.append(1 if arg == 1 else _specialised(arg))
        elif isinstance(arg, torch.Tensor):
            address = arg.data_ptr()
            values.append(address)
            kinds.append((arg.dtype, address % 16 == 0))
        else:
            values.append(arg)
            kinds.append(arg)
    key = (id(kernel), device.index, tile.warps, tile.registers, *kinds, *constants.values())
    ready = _READY.get(key)
    if ready is None:
        compiled = _compile(kernel, programs, tile, args, constants)
        _READY[key] = compiled, [constants[name] for name in kernel.arg_names[len(args) :]]
        return
    compiled, tail = ready
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    compiled[(programs, 1, 1)](*values, *tail, stream=stream)


def _specialised(number: int) -> int:
    """What Triton distinguishes of an integer: whether it is a multiple of 16, and whether it fits 32 bits."""
    return (2 if number % 16 == 0 else 4) + (-(1 << 31) <= number < 1 << 31)


def _compile(kernel: Any, programs: int, tile: Tile, args: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    """Triton's own launch, which compiles what it has not seen; returns the compiled kernel."""
    limits = {} if tile.registers is None else {"maxnreg": tile.registers}
    return kernel[(programs,)](*args, num_warps=tile.warps, enable_fp_fusion=True, **limits, **constants)
