"""How Triton's kernels are launched: past Triton's own way to a compiled kernel, which takes the host longer."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from s24compile.kernels.triton.tiles import Tile
from s24compile.torch_internals.products import raw_stream

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""What the kernels read, by torch's name."""


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
    stream = raw_stream(device.index)
    compiled[(programs, 1, 1)](*values, *tail, stream=stream)


def _specialised(number: int) -> int:
    """What Triton distinguishes of an integer: whether it is a multiple of 16, and whether it fits 32 bits."""
    return (2 if number % 16 == 0 else 4) + (-(1 << 31) <= number < 1 << 31)


def _compile(kernel: Any, programs: int, tile: Tile, args: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    """Triton's own launch, which compiles what it has not seen; returns the compiled kernel."""
    limits = {} if tile.registers is None else {"maxnreg": tile.registers}
    return kernel[(programs,)](*args, num_warps=tile.warps, enable_fp_fusion=True, **limits, **constants)
