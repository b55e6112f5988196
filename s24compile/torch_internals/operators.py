"""Operators: their classes, their names and schemas, and the way from Python into the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.library import CustomOpDef

from s24compile.torch_internals.part import Part, needed

with needed:
    from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

__all__ = ["PARTS", "HigherOrderOperator", "OpOverload", "OpOverloadPacket"]

_OP = "torch.ops.aten._unsafe_view.default"
_CUSTOM = (
    "torch.library.custom_op('s24_test::part', lambda x: x.clone(), mutates_args=(), schema='(Tensor x) -> Tensor')"
)
PARTS = (
    Part("torch._ops.HigherOrderOperator", "bodies of checkpoints and regions are not entered"),
    Part("torch._ops.OpOverload", "ops in graphs are not known"),
    Part("torch._ops.OpOverloadPacket", "the same"),
    Part("torch._ops.OpOverload._opname", "the same", on_instances=_OP),
    Part("torch._ops.OpOverload._schema", "nobody knows which ops write to what they are given", on_instances=_OP),
    Part("torch._ops.OpOverload._overloadpacket", "no op of Sparse24 is found in its table", on_instances=_OP),
    Part("torch._ops.OpOverload._op", "each call of a 2:4 op takes the dispatcher's way, 20 us longer",
         on_instances=_OP),
    Part("torch._ops.OpOverload._name", "ops without a __name__ are unreadable in refusals", on_instances=_OP),
    Part("torch.library.CustomOpDef._name", "the ops of this package have no names", on_instances=_CUSTOM),
    Part("torch.library.CustomOpDef._abstract_fn", "a call with tensors on meta and elsewhere gives memory that nobody "
         "wrote", on_instances=_CUSTOM),
    Part("torch._C._len_torch_dispatch_stack", "ops called under FakeTensorMode would run"),
    Part("torch.autograd._profiler_enabled", "a profiler does not see the 2:4 ops"),
)  # fmt: skip

count_dispatch_modes: Callable[[], int]
is_profiling: Callable[[], bool]
with needed:
    count_dispatch_modes = torch._C._len_torch_dispatch_stack
    is_profiling = torch.autograd._profiler_enabled


def base_name(op: Any) -> str:
    """The name of an OpOverload without namespace and overload: "mm" of `torch.ops.s24.mm.default`."""
    return cast(str, op._opname)


def schema_of(op: Any) -> Any:
    """What an OpOverload takes and gives: arguments, with which of them it writes to; `str` is its declaration."""
    return op._schema


def packet_of(op: Any) -> Any:
    """`torch.ops.aten.mm` of `torch.ops.aten.mm.default`."""
    return op._overloadpacket


def hidden_name(target: Any) -> Any:
    """The name of something callable in a graph that has no `__name__`; None where it has none at all."""
    return getattr(target, "_name", None)


def custom_name(op: CustomOpDef) -> str:
    """The name of a custom op without its namespace."""
    return op._name


def fake_kernel(op: CustomOpDef) -> Callable[..., Any] | None:
    """What `register_fake` was given."""
    return op._abstract_fn


def replace_call(op: OpOverload, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Lets `op(...)` from Python call `make(dispatch)`, where `dispatch(...)` is what it called before."""
    op._op = make(op._op)
