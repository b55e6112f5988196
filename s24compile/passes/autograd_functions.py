"""Activations that are an autograd.Function with a derivative of its own, as Bloom's GELU is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from s24compile.passes.activations import FORMS
from s24compile.passes.emit import Emitter, erase_unused
from s24compile.passes.expression import match_expression
from s24compile.passes.scope import fake, hop_name
from s24compile.passes.spelling import is_fresh, known_name, raw_name

_IN_DERIVATIVES = frozenset({"sub", "neg", "_set_grad_enabled"})


def autograd_function(node: fx.Node, emit: Emitter) -> fx.Node | None:
    """An autograd.Function that computes tanh-GELU and its derivative (Bloom).

        getitem(autograd_function_apply(fwd, bwd, h, ...), 0)  ->  gelu(h, approximate="tanh")         h [.., F]

    The forward body must be the expression. The backward body must be elementwise and is run on sample numbers
    against the derivative. Refused: any other body, so that a custom gradient is never dropped.
    """
    source = node.args[0] if known_name(node) == "getitem" and node.args[1] == 0 else node
    if fake(node) is None or not isinstance(source, fx.Node) or hop_name(source) != "autograd_function_apply":
        return None
    owner = node.graph.owning_module
    bodies = [getattr(owner, str(a.target), None) for a in source.args[:2] if isinstance(a, fx.Node)]
    tensors = [a for a in source.args[2:] if isinstance(a, fx.Node) and fake(a) is not None]
    if len(bodies) != 2 or len(tensors) != 1 or not all(isinstance(body, fx.GraphModule) for body in bodies):
        return None
    forward, backward = bodies
    assert isinstance(forward, fx.GraphModule)
    assert isinstance(backward, fx.GraphModule)
    root = _first_result(forward)
    if root is None:
        return None
    for pattern in FORMS["gelu_tanh"]:
        matched = match_expression(pattern, root)
        if matched is not None and matched.variable().op == "placeholder" and _is_derivative(backward, "tanh"):
            for other in [user for user in source.users if user is not node and not user.users]:
                erase_unused(other)  # in bodies torch 2.11 unpacks what nobody reads
            return emit.same_value(F.gelu, tensors[0], approximate="tanh")
    return None


def _first_result(body: fx.GraphModule) -> fx.Node | None:
    """The first result of a body, in a copy without the others: torch 2.11 returns every intermediate value too."""
    graph = fx.Graph()
    root: Any = graph.graph_copy(body.graph, {})
    while isinstance(root, (tuple, list)) and root:
        root = root[0]
    if not isinstance(root, fx.Node):
        return None
    graph.output(root)
    graph.eliminate_dead_code()
    return root


def _is_derivative(backward: fx.GraphModule, approximate: str) -> bool:
    """Whether an elementwise backward body (grad, x) -> grad * gelu'(x) agrees with autograd on sample numbers."""
    graph = backward.graph
    if not all(n.op in ("placeholder", "output") or is_fresh(n) or raw_name(n) in _IN_DERIVATIVES for n in graph.nodes):
        return False
    inputs = graph.find_nodes(op="placeholder")
    # dynamic=True hands symbolic sizes to the body as well, torch 2.11 intermediate values of the forward.
    spare = [n for n in inputs if fake(n) is None or not n.users]
    if len(inputs) - len(spare) != 2 or any(n.users for n in spare):
        return False
    x = torch.linspace(-6, 6, 97, dtype=torch.float64, requires_grad=True)
    grad = torch.linspace(1, 2, 97, dtype=torch.float64)
    with torch.enable_grad():
        (expected,) = torch.autograd.grad(F.gelu(x, approximate=approximate), x, grad)
    for args in ((grad, x.detach()), (x.detach(), grad)):
        tensors = iter(args)
        found = fx.Interpreter(backward).run(*(0 if n in spare else next(tensors) for n in inputs))
        grads = [t for t in (found if isinstance(found, (tuple, list)) else (found,)) if isinstance(t, torch.Tensor)]
        # The libraries round sqrt(2/pi) and its multiples to 8 digits.
        if len(grads) == 1 and torch.allclose(grads[0], expected, rtol=1e-5, atol=1e-6):
            return True
    return False
