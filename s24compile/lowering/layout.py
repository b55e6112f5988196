"""Row- or column-major for what each GEMM writes (Z, H, dH, dZ, Y, dX, dW), by the bytes that follow from the choice.

Legend: T tokens, D model width, F hidden width. A result [m, n] has strides (n, 1) in layout "row", (1, m) in "col".

    z = s24.mm(..., "col") -> t -> glu                 ->   z = s24.mm(..., "row") -> t -> glu     if columns cost less
    g = s24.mm(..., "row") -> t -> clone(contiguous)   ->   g = s24.mm(..., "col") -> t

A choice costs what the GEMM writes, what the s24 kernels behind the views read, and two moves for each copy that a
reader needs to see it otherwise; each in bytes, a sympy expression of the sizes, times what `layout_plan.MEASURED`
says of the kernel. A layout is bound to another one only in `mm_dact`, which reads Z as it writes dZ: such GEMMs are
chosen together. All combinations are tried, ties stay as they are.

Pinned: what any other op reads (Inductor's kernels have the strides they were traced with), what the graph returns to
its caller, and a view that the other layout has not. What is saved for the backward is free under Inductor, which
tells AOTAutograd its strides, where they are no symbols (AOTAutograd would take symbols for constants).
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import sympy
from torch import Tensor, fx

from s24compile.graphs.fake_mode import fake_mode_of
from s24compile.kernels.target import Target
from s24compile.lowering.build import op_name, s24_calls
from s24compile.lowering.layout_plan import OUT_LAYOUT, Z_OF, LayoutPlan, layout_of, passes_on
from s24compile.torch_internals.graphs import pytree

log = logging.getLogger(__name__)


def choose_layouts(graph: fx.Graph, target: Target) -> int:
    """Sets every `out_layout` and drops the copies that become needless. Returns how many nodes it changed."""
    changed = 0
    free = _saved_outputs(graph)
    for group in _groups(graph):
        best = present = LayoutPlan({node: layout_of(node) for node in group}, target, free)
        # Most often nothing can be better, and then no fake tensor is made.
        trials = itertools.product(("row", "col"), repeat=len(group)) if present.cost != present.least else ()
        for layouts in trials:
            plan = LayoutPlan(dict(zip(group, layouts, strict=True)), target, free)
            if plan.possible and _is_less(plan.cost, best.cost, graph):
                best = plan
        if best is not present:
            log.debug("%s: %s instead of %s", [n.name for n in group], best, present)
        changed += best.apply()
    for node in s24_calls(graph):
        _take_what_arrives(node)
    return changed


def _groups(graph: fx.Graph) -> list[list[fx.Node]]:
    """The GEMMs whose layout is free, each with those that read its result as Z."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in s24_calls(graph):
        op = op_name(node)
        if op not in OUT_LAYOUT:
            continue
        source = node.args[Z_OF[op]] if op in Z_OF else None
        while isinstance(source, fx.Node) and source not in groups and passes_on(source):
            source = source.args[0]
        groups[node] = groups.get(source, []) if isinstance(source, fx.Node) else []
        groups[node].append(node)
    return list({id(group): group for group in groups.values()}.values())


def _saved_outputs(graph: fx.Graph) -> frozenset[fx.Node]:
    """Outputs that only the backward reads, of known strides: Inductor writes down which ones the caller sees."""
    (output,) = graph.find_nodes(op="output")
    visible = output.meta.get("user_visible_output_idxs")
    if not visible or not isinstance(output.args[0], (tuple, list)):
        return frozenset()
    behind = max(visible) + 1
    seen = set(output.args[0][:behind])
    return frozenset(
        node
        for node in output.args[0][behind:]
        if isinstance(node, fx.Node) and node not in seen and _is_static(node.meta.get("val"))
    )


def _is_static(value: Any) -> bool:
    return isinstance(value, Tensor) and all(isinstance(n, int) for n in (*value.shape, *value.stride()))


def _is_less(a: sympy.Expr, b: sympy.Expr, graph: fx.Graph) -> bool:
    """Whether a < b for all sizes, else for those of the example."""
    difference = sympy.expand(a - b)
    if difference.is_negative is None:
        mode = fake_mode_of(graph)
        assert mode is not None
        assert mode.shape_env is not None
        difference = difference.xreplace(mode.shape_env.backed_var_to_val)
    return bool(difference.is_negative)


def _take_what_arrives(node: fx.Node) -> None:
    """Lets Inductor hand a kernel the strides that the graph has now; else it copies to those that were traced.

    They differ behind a GEMM that was turned, and in the backward of one whose result was saved.
    """
    if "eager_input_vals" in node.meta:
        args, kwargs = pytree.tree_map(
            lambda arg: arg.meta.get("val") if isinstance(arg, fx.Node) else None, (node.args, dict(node.kwargs))
        )
        node.meta["eager_input_vals"] = (args, kwargs)
