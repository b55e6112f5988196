"""What one choice of layouts costs in bytes, and what follows from it for the graph; `layout.py` compares them."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.graphs.fake_mode import fake_mode_of
from s24compile.kernels import providers
from s24compile.kernels.target import Target
from s24compile.lowering.build import op_name
from s24compile.lowering.views import is_view
from s24compile.torch_internals.graphs import is_contiguous_or_false, pytree

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Pace:
    """What one byte of an operand costs a kernel by its direction, in per cent of what it costs there by rows."""

    row: int = 100
    col: int = 100


RESULT = -1

# (provider, op, index of the operand or RESULT). H100 80GB HBM3, torch 2.11, Triton 3.6, 2026-11-21, 16384 x 11008:
# times by columns over times by rows (that day's results/memory_kernels.json), the difference laid on the operands that
# were turned. CUTLASS's GEMMs read and write both layouts within 3% (docs/hopper.md). What is not here has none.
MEASURED: dict[tuple[str, str, int], Pace] = {
    ("triton", "mvue_pack", 0): Pace(col=109),
    ("triton", "glu", 0): Pace(col=106),
    ("triton", "glu_backward", 0): Pace(col=115),
    ("triton", "glu_backward", 1): Pace(col=115),
}

READ_AGAIN = {("glu", 0): ("glu_backward", 1)}
"""Forward operand -> the operand that it is in the backward, if it is saved."""
Z_OF = {"mm_dact": 6, "mm_dglu": 6}
"""GEMMs that read Z in the layout of their result -> its index; they copy any other Z."""
OUT_LAYOUT = {"mm": 7, "mm_act": 8, "mm_dact": 8}
"""GEMMs whose layout is free -> its index; mm_glu and mm_dglu write columns only."""


class LayoutPlan:
    """One choice of layouts for a group of GEMMs, and what follows from it.

    `least` is the cost if every kernel had what it likes best and nothing was copied.
    """

    def __init__(self, layouts: dict[fx.Node, str], target: Target, free: frozenset[fx.Node]) -> None:
        self.layouts, self.target, self.free = layouts, target, free
        self.possible = True
        self.cost: sympy.Expr = sympy.Integer(0)
        self.least: sympy.Expr = sympy.Integer(0)
        self.needless: list[fx.Node] = []
        self.values: dict[fx.Node, Any] = {}
        """Fake values that are not what the graph says."""
        self.saved = False
        self.reads: list[tuple[str, str, int, Tensor]] = []
        for gemm, layout in layouts.items():
            if layout != layout_of(gemm):
                self._evaluate(gemm)
        for gemm in layouts:
            self._write(gemm)
            self._follow(gemm)
        for provider, op, index, value in self.reads if self.saved else ():
            if (op, index) in READ_AGAIN:
                self._charge(value, (provider, *READ_AGAIN[op, index]))

    def __str__(self) -> str:
        return f"{'/'.join(self.layouts.values())} ({self.cost} bytes)"

    def apply(self) -> int:
        """Writes the choice into the graph; returns how many nodes it changed."""
        turned = [gemm for gemm, layout in self.layouts.items() if layout != layout_of(gemm)]
        for gemm in turned:
            gemm.args = self._args(gemm)
        for node, value in self.values.items() if turned else ():
            node.meta["val"] = value
        for copy in self.needless:
            copy.replace_all_uses_with(copy.args[0])  # type: ignore[arg-type]
            copy.graph.erase_node(copy)
        return len(turned) + len(self.needless)

    def value(self, node: fx.Node) -> Any:
        return self.values.get(node, node.meta["val"])

    def _args(self, node: fx.Node) -> tuple[Any, ...]:
        if node not in self.layouts:
            return node.args
        place = OUT_LAYOUT[op_name(node)]
        return (*node.args[:place], self.layouts[node], *node.args[place + 1 :])

    def _fake_args(self, node: fx.Node) -> tuple[Any, ...]:
        return pytree.tree_map_only(fx.Node, self.value, self._args(node))

    def _evaluate(self, node: fx.Node, op: Any = None) -> bool:
        """Finds the node's value in this plan; False where it has none: a view that these strides do not allow."""
        mode = fake_mode_of(node.graph)
        assert mode is not None
        guards = mode.shape_env.suppress_guards() if mode.shape_env is not None else contextlib.nullcontext()
        call: Any = op or node.target
        try:
            with mode, guards:
                self.values[node] = call(*self._fake_args(node), **node.kwargs)
        except (RuntimeError, ValueError):
            return False
        return True

    def _follow(self, gemm: fx.Node) -> None:
        """Charges for all that read a GEMM's results, through views."""
        todo = [(gemm, True)]
        while todo:
            node, alone = todo.pop()
            for user in list(node.users):
                several = node is gemm and isinstance(node.meta["val"], (tuple, list))
                only = alone and (several or len(node.users) == 1)
                if self._read(node, user, only):
                    todo.append((user, only))

    def _read(self, node: fx.Node, user: fx.Node, only: bool) -> bool:
        """Charges `user` for reading `node`; returns whether it passes the memory on.

        `only`: nobody else reads that memory.
        """
        value = self.value(node)
        if user.op == "output":
            self.saved = self.saved or node in self.free
            self.possible &= node in self.free or _same_strides(value, node.meta["val"])
        elif passes_on(user):
            return self._view(node, user)
        elif _makes_contiguous(user):
            if only and is_contiguous_or_false(value):
                self.needless.append(user)
            else:
                self._copy(value)
        elif getattr(user.target, "namespace", "") == "s24":
            self._read_by_kernel(node, user, value)
        else:
            self.possible &= _same_strides(value, node.meta["val"])
        return False

    def _view(self, node: fx.Node, user: fx.Node) -> bool:
        """Charges a reshape that has to copy; any other view costs nothing, or is not to be had."""
        is_reshape = user.target is aten.reshape.default
        if not is_reshape and node not in self.values:
            return True
        if self._evaluate(user, aten.view.default if is_reshape else None):
            if node not in self.values:
                del self.values[user]  # it is what the graph says
            return True
        self.possible &= is_reshape and self._evaluate(user)
        if self.possible:
            self._copy(self.value(user))
            self.possible = _same_strides(self.value(user), user.meta["val"])
        return False

    def _read_by_kernel(self, node: fx.Node, user: fx.Node, value: Tensor) -> None:
        op, provider = op_name(user), self._provider(user)
        for index, arg in enumerate(user.args):
            if arg is not node:
                continue
            self._charge(value, (provider, op, index))
            self.reads.append((provider, op, index, value))
            if index == Z_OF.get(op) and op not in OUT_LAYOUT and _direction(value) != "col":
                self._copy(value)

    def _write(self, gemm: fx.Node) -> None:
        op, provider = op_name(gemm), self._provider(gemm)
        results = self.value(gemm)
        for result in results if isinstance(results, (tuple, list)) else (results,):
            self._charge(result, (provider, op, RESULT))
        if op in Z_OF:
            z = self.value(gemm.args[Z_OF[op]])  # type: ignore[arg-type]
            if _direction(z) != self.layouts[gemm]:
                self._copy(z)

    def _provider(self, node: fx.Node) -> str:
        """Whose kernel would run a node; a plan must not change it."""
        now = providers.choose(op_name(node), *self._fake_args(node), target=self.target).provider.name
        if self.values:
            traced = pytree.tree_map_only(fx.Node, lambda arg: arg.meta["val"], node.args)
            self.possible &= now == providers.choose(op_name(node), *traced, target=self.target).provider.name
        return now

    def _charge(self, value: Tensor, key: tuple[str, str, int]) -> None:
        pace, size = MEASURED.get(key, Pace()), _bytes(value)
        self.cost += size * sympy.Rational(getattr(pace, _direction(value)), 100)
        self.least += size * sympy.Rational(min(pace.row, pace.col), 100)

    def _copy(self, value: Tensor) -> None:
        self.cost += 2 * _bytes(value)


def layout_of(gemm: fx.Node) -> str:
    """The layout that a GEMM of free layout writes now: "row" or "col"."""
    return str(gemm.args[OUT_LAYOUT[op_name(gemm)]])


def passes_on(node: fx.Node) -> bool:
    """Whether a node looks at its first argument's memory, or takes one of several results."""
    pure_view = getattr(node.target, "is_view", False) and node.target is not aten.contiguous.default
    return is_view(node) or node.target is operator.getitem or (node.op == "call_function" and pure_view)


def _makes_contiguous(node: fx.Node) -> bool:
    if node.target is aten.contiguous.default:
        return len(node.args) == 1 and node.kwargs.get("memory_format") in (None, torch.contiguous_format)
    return node.target is aten.clone.default and node.kwargs.get("memory_format") is torch.contiguous_format


def _direction(value: Tensor) -> str:
    """In which direction a matrix, or a tensor of rows with leading dims, is contiguous."""
    return "row" if statically_known_true(value.stride(-1) == 1) else "col"


def _same_strides(one: Tensor, other: Tensor) -> bool:
    pairs = zip(one.stride(), other.stride(), strict=True)
    return one is other or all(statically_known_true(a == b) for a, b in pairs)


def _bytes(value: Tensor) -> sympy.Expr:
    sizes: Iterator[Any] = (size if isinstance(size, int) else size.node.expr for size in value.shape)
    return sympy.prod(sizes) * value.dtype.itemsize
