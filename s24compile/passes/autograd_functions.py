"""Activations that are an autograd.Function with a derivative of its own, as Bloom's GELU is."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from s24compile.kernels.activations import ACTIVATIONS
from s24compile.passes.cuts import Cut, cuts
from s24compile.passes.functions import Known, agree_in_slope, aside, known, samples
from s24compile.passes.pointwise import is_pointwise
from s24compile.passes.scope import fake, hop_name, known_fake
from s24compile.passes.spelling import known_name, raw_name
from s24compile.torch_internals.graphs import GRAD_SWITCH


@dataclasses.dataclass(frozen=True)
class UserFunction:
    """A call of an autograd.Function that is an activation."""

    name: str
    h: fx.Node
    nodes: tuple[fx.Node, ...]
    """The node of its result first, then its call, and further results that nobody reads."""
    exact: bool


def function_of_user(node: fx.Node) -> UserFunction | None:
    """An autograd.Function that computes an activation and its derivative.

        getitem(autograd_function_apply(forward, backward, h, ...), 0)        gelu_tanh of h [.., F]

    The forward body must be a pointwise expression of h that is an activation. The backward body must be pointwise,
    too, and is run on sample numbers against the derivative. Refused: any other body, so that a custom gradient is
    never dropped; two tensors as operands.
    """
    source = node.args[0] if known_name(node) == "getitem" and node.args[1] == 0 else node
    if fake(node) is None or not isinstance(source, fx.Node) or hop_name(source) != "autograd_function_apply":
        return None
    owner = node.graph.owning_module
    bodies = [getattr(owner, str(a.target), None) for a in source.args[:2] if isinstance(a, fx.Node)]
    forward, backward = bodies if len(bodies) == 2 else (None, None)
    tensors = [a for a in source.args[2:] if isinstance(a, fx.Node) and fake(a) is not None]
    if not isinstance(forward, fx.GraphModule) or not isinstance(backward, fx.GraphModule) or len(tensors) != 1:
        return None
    found = _known(forward)
    exact = None if found is None else _is_derivative(backward, found.name)
    if found is None or exact is None or known_fake(node).dtype != known_fake(tensors[0]).dtype:
        return None
    # In bodies torch 2.11 unpacks what nobody reads.
    unread = [user for user in source.users if user is not node and not user.users]
    return UserFunction(found.name, tensors[0], tuple(dict.fromkeys((node, *unread, source))), exact)


def _known(forward: fx.GraphModule) -> Known | None:
    """The activation that a forward body of one operand computes."""
    root = _first_result(forward)
    cut = next((cut for cut in cuts(root, 1) if _is_whole(cut)), None) if root is not None else None
    return known(cut.expression()) if cut is not None else None


def _is_whole(cut: Cut) -> bool:
    (leaf,) = cut.leaves
    return leaf.op == "placeholder" and cut.keeps_dtype_of(leaf)


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


def _is_derivative(backward: fx.GraphModule, name: str) -> bool | None:
    """Whether a pointwise backward body (grad, x) -> grad * act'(x) agrees with autograd; as `agree_in_slope`."""
    graph = backward.graph
    switches = ("placeholder", "output")
    if not all(n.op in switches or raw_name(n) == GRAD_SWITCH or is_pointwise(n) for n in graph.nodes):
        return None
    inputs = graph.find_nodes(op="placeholder")
    # dynamic=True hands symbolic sizes to the body as well, torch 2.11 intermediate values of the forward.
    spare = [n for n in inputs if fake(n) is None or not n.users]
    if len(inputs) - len(spare) != 2 or any(n.users for n in spare):
        return None
    x = samples()
    grad = torch.linspace(1, 2, len(x), dtype=torch.float64, device="cpu")
    expected = ACTIVATIONS[name].slope(x) * grad
    with aside():
        for given in ((grad, x), (x, grad)):
            tensors = iter(given)
            result = fx.Interpreter(backward).run(*(0 if n in spare else next(tensors) for n in inputs))
            grads = [t for t in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(t, Tensor)]
            exact = agree_in_slope((grads[0],), (expected,), x) if len(grads) == 1 else None
            if exact is not None:
                return exact
    return None
