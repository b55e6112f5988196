"""Linears that somebody else has converted to float8, by torchao, nanochat or a Function of the user's own.

trampoline_autograd_apply(x, W.t(), ...)       torchao, nanochat: a Function that Dynamo was told not to look into
autograd_function_apply(fwd, bwd, x, W)        one that it does look into, around torch._scaled_mm
_scaled_mm(x8, w8.t(), ...)                    none at all: float8 for inference
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from s24compile.passes.emit import Emitter
from s24compile.passes.linears import Refusal, parameters_of
from s24compile.passes.scope import Scope, fake, hop_name
from s24compile.passes.spelling import general_name
from s24compile.torch_internals.products import SCALED_PRODUCTS

OPAQUE = "trampoline_autograd_apply"
FUNCTION = "autograd_function_apply"
ROOTS = SCALED_PRODUCTS | {OPAQUE, FUNCTION, "getitem"}
SENTENCE = (
    "its projection is converted to float8 already, by {name}, which is not rewritten; leave the layer unconverted, "
    "and precision='fp8' multiplies eight-bit floats in it, 2:4 ones"
)
_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def converted(scope: Scope, node: fx.Node, _: Emitter) -> Refusal | None:
    """A product by a parameter [N, K] or [K, N] in float8 that is not ours. Always refused."""
    call: Any = node
    if node.op not in ("call_function", "call_method"):  # a placeholder of a checkpointed body may be called getitem
        return None
    if general_name(node) == "getitem":
        call = node.args[0]
        if not isinstance(call, fx.Node) or hop_name(call) != FUNCTION or node.args[1] != 0:
            return None
    value, name = fake(node), _name_of(call)
    matrices = [o for o in call.all_input_nodes if (given := fake(o)) is not None and given.dim() == 2]
    if not name or value is None or value.dim() < 2 or not any(parameters_of(scope, o) for o in matrices):
        return None
    return Refusal(SENTENCE.format(name=name), call, whole=True)


def _name_of(call: fx.Node) -> str:
    """What multiplies in float8 there, in a word; empty if nothing does."""
    if general_name(call) in SCALED_PRODUCTS:
        return "torch._scaled_mm"
    if hop_name(call) == FUNCTION:
        body = getattr(call.graph.owning_module, str(getattr(call.args[0], "target", "")), None)
        return (
            "an autograd.Function"
            if isinstance(body, fx.GraphModule) and any(map(_is_narrow, body.graph.nodes))
            else ""
        )
    if general_name(call) != OPAQUE:
        return ""
    # The Function itself is known to the closure that Dynamo has put in its place, alone.
    held = [cell.cell_contents for cell in getattr(call.target, "__closure__", None) or ()]
    functions = [one for one in held if isinstance(one, type) and issubclass(one, torch.autograd.Function)]
    names = [f"{one.__module__}.{one.__qualname__}" for one in functions]
    return next((name for name in names if re.search(r"float_?8|fp8", name, re.IGNORECASE)), "")


def _is_narrow(node: fx.Node) -> bool:
    value = fake(node)
    return general_name(node) in SCALED_PRODUCTS or (value is not None and value.dtype in _NARROW)
