"""Activations: the canonical node of each, and the rules that bring every spelling to it.

Canonical, on h [.., F] (or a half of z [.., 2F]):
    gelu        gelu(h)                     gelu_tanh   gelu(h, approximate="tanh")
    silu        silu(h)                     relu        relu(h)
    relu2       square(relu(h))             quick_gelu  mul(h, sigmoid(mul(h, 1.702)))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx

from s24compile.passes.effects import is_written
from s24compile.passes.emit import Emitter
from s24compile.passes.expression import Call, Matched, Var, call, match_expression
from s24compile.passes.scope import fake, known_fake
from s24compile.passes.spelling import ALIASING, general_name, known_name, spell

X = Var("x")
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _forms() -> dict[str, tuple[Call, ...]]:
    half_x = (call("mul", 0.5, X), call("div", X, 2.0))
    scaled = (call("div", X, math.sqrt(2)), call("mul", X, math.sqrt(0.5)))
    cdf = [call("add", 1.0, call("erf", s)) for s in scaled]
    gelu = [call("mul", h, c) for h in half_x for c in cdf]
    # x * (0.5 * (1 + erf)) and (x * (1 + erf)) * 0.5 are the same number, associated differently.
    gelu += [form for c in cdf for form in (call("mul", X, call("mul", 0.5, c)), call("mul", 0.5, call("mul", X, c)))]

    square = (call("pow", X, 2.0), call("mul", X, X), call("square", X))
    cubes = [call("pow", X, 3.0), *(call("mul", X, s) for s in square)]
    inner = [call("mul", SQRT_2_OVER_PI, call("add", X, call("mul", 0.044715, c))) for c in cubes]
    # fast: x * k * (1 + 0.044715 * x * x)
    poly = [call("add", 1.0, call("mul", 0.044715, s)) for s in square]
    poly.append(call("add", 1.0, call("mul", call("mul", 0.044715, X), X)))
    inner += [call("mul", call("mul", X, SQRT_2_OVER_PI), p) for p in poly]
    tanh = [call("add", 1.0, call("tanh", i)) for i in inner]
    gelu_tanh = [call("mul", h, t) for h in half_x for t in tanh]
    gelu_tanh += [
        form for t in tanh for form in (call("mul", X, call("mul", 0.5, t)), call("mul", 0.5, call("mul", X, t)))
    ]

    relu = (call("relu", X), call("clamp_min", X, 0.0), call("maximum", X, call("zeros_like", X)))
    return {
        "gelu": tuple(gelu),
        "gelu_tanh": tuple(gelu_tanh),
        "silu": (call("mul", X, call("sigmoid", X)),),
        "quick_gelu": (call("mul", X, call("sigmoid", call("mul", 1.702, X))),),
        "relu": relu,
    }


FORMS = _forms()
"""Canonical activation -> the expressions that mean it."""
_SQUARES = (call("pow", X, 2.0), call("mul", X, X), call("square", X))
_RELU_CLAMP = dataclasses.replace(call("clamp", X, 0.0), args=(*call("clamp", X, 0.0).args, None))
_ROOTS = {"mul": ("gelu", "gelu_tanh", "silu", "quick_gelu"), "clamp_min": ("relu",), "maximum": ("relu",)}


def gelu_nodes(node: fx.Node, emit: Emitter) -> fx.Node | None:
    """GELU, SiLU and quick_gelu written out, with every constant and order of CATALOGUE's libraries.

        mul(mul(0.5, h), add(1.0, erf(truediv(h, 1.41421356))))                              ->  gelu(h)
        mul(mul(0.5, h), add(1.0, tanh(mul(0.79788456, add(h, mul(0.044715, pow(h, 3)))))))
                                                                                ->  gelu(h, approximate="tanh")
        mul(mul(0.5, h), add(1.0, tanh(mul(mul(h, 0.797885), add(1.0, mul(mul(0.044715, h), h))))))  ->  the same
        mul(h, sigmoid(h))                                                                   ->  silu(h)
        mul(sigmoid(mul(1.702, h)), h)                                  ->  mul(h, sigmoid(mul(h, 1.702)))
        clamp_min(h, 0) | maximum(h, zeros_like(h))                                          ->  relu(h)

    Refused: another constant, in-place nodes inside. With dynamic=True a constant may be a symbolic float: it is
    guarded, so that another value compiles again.
    """
    for act in _ROOTS.get(str(known_name(node)), ()):
        for pattern in FORMS[act]:
            matched = match_expression(pattern, node)
            if matched is not None:
                return _canonical(act, matched, node, emit)
    return None


def clamp(node: fx.Node, emit: Emitter) -> fx.Node | None:
    """clamp(h, min=0)  ->  relu(h), with its slope at exactly 0.  Refused: an upper bound (ReLU6); a result that is
    written to, which relu keeps for its backward."""
    matched = match_expression(_RELU_CLAMP, node)
    return None if matched is None or is_written(node) else emit.same_value(F.relu, matched.variable())


def plain_call(node: fx.Node, emit: Emitter) -> fx.Node | None:
    """relu(h, inplace=False) | torch.relu(h) | h.relu()  ->  F.relu(h), so silu; gelu(h, "none")  ->  gelu(h)."""
    op = spell(node)
    if op is None:  # of the right name, with arguments that no rule knows
        return None
    if op.name == "gelu":
        tanh = op.args[1] == "tanh"
        if (tanh and dict(node.kwargs) == {"approximate": "tanh"} and len(node.args) == 1) or (
            not tanh and _bare(node)
        ):
            return None
        return emit.same_value(F.gelu, op.args[0], **({"approximate": "tanh"} if tanh else {}))
    target = F.relu if op.name == "relu" else F.silu
    if op.inplace or (_bare(node) and node.target is target):
        return None
    return emit.same_value(target, op.args[0])


def squared(node: fx.Node, emit: Emitter) -> fx.Node | None:
    """pow(r, 2) | mul(r, r) | r.square()  ->  torch.square(r), of r = relu(h). Refused: squares of anything else."""
    if node.target is torch.square:
        return None
    for pattern in _SQUARES:
        matched = match_expression(pattern, node)
        if matched is not None and known_name(matched.variable()) == "relu":
            matched.hold_constants()
            return _in_dtype_of(node, emit, torch.square, matched.variable())
    return None


def _canonical(act: str, matched: Matched, node: fx.Node, emit: Emitter) -> fx.Node | None:
    h = matched.variable()
    if act == "relu" and is_written(node):  # clamp_min keeps its operand for the backward, relu its result
        return None
    if act == "quick_gelu":
        if _canonical_quick_gelu(node) is not None or known_fake(node).dtype != known_fake(h).dtype:
            return None
        matched.hold_constants()
        scaled = emit.function(torch.mul, h, 1.702)
        return emit.same_value(torch.mul, h, emit.function(torch.sigmoid, scaled))
    matched.hold_constants()
    simple: dict[str, Callable[..., object]] = {"gelu": F.gelu, "gelu_tanh": F.gelu, "silu": F.silu, "relu": F.relu}
    return _in_dtype_of(node, emit, simple[act], h, **({"approximate": "tanh"} if act == "gelu_tanh" else {}))


def _in_dtype_of(
    node: fx.Node, emit: Emitter, target: Callable[..., object], h: fx.Node, **keywords: str
) -> fx.Node | None:
    """target(h), cast where the node was wider: on a GPU autocast computes `pow` in fp32, so GPT-2's gelu_new is fp32.

    Refused where the wider numbers are seen by more than products, of which autocast rounds the operands.
    """
    dtype, wanted = known_fake(h).dtype, known_fake(node).dtype
    if dtype == wanted:
        return emit.same_value(target, h, **keywords)
    if not _only_multiplied(node, dtype):
        return None
    return emit.method("to", emit.function(target, h, **keywords), wanted)


def _only_multiplied(node: fx.Node, dtype: torch.dtype) -> bool:
    for user in node.users:
        name, value = general_name(user), fake(user)
        if name in ALIASING or name in ("mul", "dropout"):
            if not _only_multiplied(user, dtype):
                return False
        elif name not in ("linear", "addmm", "matmul") or value is None or value.dtype != dtype:
            return False
    return True


def _bare(node: fx.Node) -> bool:
    return len(node.args) == 1 and not node.kwargs


@dataclasses.dataclass(frozen=True)
class Activation:
    """A canonical activation found in the graph: its name, its input, and the nodes that compute it."""

    name: str
    h: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def node(self) -> fx.Node:
        """The node whose result is the activation."""
        return self.nodes[0]


def _canonical_quick_gelu(node: fx.Node) -> Activation | None:
    if node.target is not torch.mul or len(node.args) != 2:
        return None
    h, gate = node.args
    scaled = gate.args[0] if isinstance(gate, fx.Node) and gate.target is torch.sigmoid else None
    if not isinstance(scaled, fx.Node) or scaled.target is not torch.mul or scaled.args[0] is not h:
        return None
    assert isinstance(h, fx.Node)
    assert isinstance(gate, fx.Node)
    return Activation("quick_gelu", h, (node, gate, scaled)) if scaled.args[1] == 1.702 else None


def activation_at(node: fx.Node) -> Activation | None:
    """Reads a canonical activation whose last node is `node`."""
    op = spell(node)
    if op is None or op.inplace:
        return None
    h = op.args[0]
    if not isinstance(h, fx.Node):
        return None
    if op.name == "gelu":
        return Activation("gelu_tanh" if op.args[1] == "tanh" else "gelu", h, (node,))
    if op.name in ("silu", "relu"):
        return Activation(op.name, h, (node,))
    if op.name == "square" and known_name(h) == "relu":
        inner = spell(h)
        if inner is not None and not inner.inplace and isinstance(inner.args[0], fx.Node):
            return Activation("relu2", inner.args[0], (node, h))
        return None
    return _canonical_quick_gelu(node) if op.name == "mul" else None
