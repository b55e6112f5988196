"""Makes new graph nodes that carry what Dynamo's own carry: fake value, module stack, source line, provenance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from s24compile.passes.pointwise import is_pure
from s24compile.torch_internals.graphs import FakeTensorMode, is_erased

INHERITED = ("nn_module_stack", "stack_trace", "source_fn_stack", "custom", "creation_timestamp")


class Emitter:
    """Emits nodes next to a point of a graph, in the name of the node that they stand for.

    Args:
        like: the user's node whose module stack and source line the new nodes inherit.
        fake_mode: Dynamo's; new fake values come from running the op under it.
        rule: the rule that builds, `meta["s24"]["rule"]`.
        site: module path of the layer, `meta["s24"]["site"]`.
    """

    def __init__(self, like: fx.Node, fake_mode: FakeTensorMode | None, rule: str, site: str = "") -> None:
        self.like = like
        self.graph = like.graph
        self.fake_mode = fake_mode
        self.provenance = {"rule": rule, "site": site}
        self.made: list[fx.Node] = []
        value = like.meta.get("example_value")
        self.grad = value.requires_grad if isinstance(value, torch.Tensor) else torch.is_grad_enabled()

    def function(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call_function node at the graph's insertion point, with its fake value computed."""
        node = self._node("call_function", target, args, kwargs)
        with self._running():
            node.meta["example_value"] = target(*fx.map_arg(args, _value), **fx.map_arg(kwargs, _value))
        return node

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call_method node, likewise."""
        node = self._node("call_method", name, args, kwargs)
        with self._running():
            subject, *rest = fx.map_arg(args, _value)
            node.meta["example_value"] = getattr(subject, name)(*rest, **fx.map_arg(kwargs, _value))
        return node

    def same_value(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call_function node with the fake value of `like`: another spelling of the same tensor."""
        node = self._node("call_function", target, args, kwargs)
        node.meta["example_value"] = self.like.meta.get("example_value")
        return node

    def _node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        name = str(target).removesuffix(".default").replace(".", "_") if str(target).startswith("s24.") else None
        node = self.graph.create_node(op, target, args, kwargs, name=name)
        for key in INHERITED:
            if key in self.like.meta:
                node.meta[key] = self.like.meta[key]
        node.meta["s24"] = dict(self.provenance)
        self.made.append(node)
        return node

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        # What ops save of fakes is not for the hooks of whoever called the model (activation checkpointing counts it).
        unseen = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
        with self.fake_mode or contextlib.nullcontext(), torch.set_grad_enabled(self.grad), unseen:
            yield


def _as_it_is(saved: torch.Tensor) -> torch.Tensor:
    return saved


def _value(node: fx.Node) -> Any:
    return node.meta["example_value"]


def replace_node(old: fx.Node, new: fx.Node) -> None:
    """Gives all users of `old` to `new` and erases `old` with whatever only it needed."""
    old.replace_all_uses_with(new)
    erase_unused(old)


def erase_unused(node: fx.Node) -> None:
    """Erases a node without users, then its operands that lose their last user so; placeholders stay.

    The node itself is known to be pure (a rule matched it); operands with effects of their own are left in place.
    """
    stack = [node]
    while stack:
        dead = stack.pop()
        if is_erased(dead) or dead.users or dead.op in ("placeholder", "output") or not (dead is node or is_pure(dead)):
            continue
        operands = dead.all_input_nodes
        dead.graph.erase_node(dead)
        stack.extend(operand for operand in operands if not is_erased(operand))
