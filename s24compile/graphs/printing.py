"""How dtypes and arguments read wherever a graph is printed: logs, structured traces, docs and goldens. A leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

_DTYPES = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.int16: "i16",
    torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.bool: "b8", torch.complex64: "c64",
}  # fmt: skip


def dtype_text(dtype: torch.dtype) -> str:
    """ "f32" of torch.float32; torch's own name of a dtype that has no short one."""
    return _DTYPES.get(dtype, str(dtype))


def argument_text(value: Any, names: Mapping[fx.Node, str]) -> str:
    """An argument of a call: nodes by `names`, lists and tuples in brackets."""
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(argument_text(item, names) for item in value) + "]"
    return dtype_text(value) if isinstance(value, torch.dtype) else repr(value)


def arguments_text(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """All arguments of a call, separated by commas."""
    given = [argument_text(value, names) for value in node.args]
    given += [f"{key}={argument_text(value, names)}" for key, value in node.kwargs.items()]
    return ", ".join(given)
