"""Packed weights as further inputs of the graph, handed down into the bodies that use them.

    top:   placeholders ..., s24_0_values [N, K/2], s24_0_metadata, (s24_0_values_t [K, N/2], s24_0_metadata_t)
           (in eight bits, behind the metadata: s24_0_descale, s24_0_probe_x and s24_0_probe_dz, [1] each)
           hop(body, x, W)                         ->   hop(body, x, W, s24_0_values, s24_0_metadata, ...)
    body:  placeholders x, W                       ->   placeholders x, W, s24_0_values, ...

N output features (rows of all weights stacked), K input features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import fx

from s24compile.kernels.format import FORMATS
from s24compile.passes.provenance import parameter_name
from s24compile.passes.scope import Scope, known_fake, operand_index, origins
from s24compile.passes.state import State
from s24compile.torch_internals.graphs import STATIC_INPUT, set_source
from s24compile.weights.operand_request import OperandRequest


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One packed operand as a scope sees it: placeholders of that scope, and how they are packed."""

    weights: tuple[fx.Node, ...]
    dtype: torch.dtype
    layout: str
    format: str
    decorated: str | None


class Operands:
    """Gives each scope the nodes of a packed operand, adding placeholders and call operands where they are missing."""

    def __init__(self, state: State, wanted: Iterable[tuple[Scope, Wanted, bool]]) -> None:
        self.state = state
        self.given: dict[tuple[Scope, Wanted], tuple[fx.Node, ...]] = {}
        self.transposed = _transposed(list(wanted))

    def provide(self, scope: Scope, wanted: Wanted) -> tuple[fx.Node, ...]:
        """The nodes values, metadata[, descale, probe_x, probe_dz][, values_t, metadata_t] in `scope`."""
        key = (scope, wanted)
        if key not in self.given:
            self.given[key] = self._hand_down(scope, wanted) if scope.calls else self._add(scope, wanted)
        return self.given[key]

    def _hand_down(self, scope: Scope, wanted: Wanted) -> tuple[fx.Node, ...]:
        inner: tuple[fx.Node, ...] = ()
        for (parent, call), weights in zip(scope.calls, _by_call(scope, wanted.weights), strict=True):
            outer = self.provide(parent, dataclasses.replace(wanted, weights=weights))
            call.args = (*call.args, *outer)
            inner = inner or tuple(_placeholder(scope, node.name, node.meta["example_value"]) for node in outer)
        return inner

    def _add(self, scope: Scope, wanted: Wanted) -> tuple[fx.Node, ...]:
        state = self.state
        shapes = [tuple(int(size) for size in known_fake(w).shape) for w in wanted.weights]
        rows = tuple(shape[0] if wanted.layout == "out_in" else shape[1] for shape in shapes)
        cols = shapes[0][1] if wanted.layout == "out_in" else shapes[0][0]
        needs_transpose = wanted in self.transposed
        device = known_fake(wanted.weights[0]).device
        form = FORMATS[wanted.format]
        assert state.fake_mode is not None
        with state.fake_mode:
            tensors = dict(zip(("values", "metadata"), form.empty(sum(rows), cols, wanted.dtype, device), strict=True))
            if wanted.dtype.itemsize == 1:
                tensors["descale"] = torch.empty(1, device=device)
                for probe in ("probe_x", "probe_dz"):
                    tensors[probe] = torch.empty(1, device=device, requires_grad=torch.is_grad_enabled())
            if needs_transpose:
                turned = FORMATS[form.transposed].empty(cols, sum(rows), wanted.dtype, device)
                tensors["values_t"], tensors["metadata_t"] = turned
        nodes = []
        for name, tensor in tensors.items():
            node = _placeholder(scope, f"s24_{len(state.operands)}_{name}", tensor)
            set_source(node, None)  # AOTAutograd asks for the attribute
            node.meta["tensor_dict"] = dict(STATIC_INPUT)  # a static address, for CUDA graphs
            nodes.append(node)
        state.operands.append(
            OperandRequest(
                weights=tuple(w.name for w in wanted.weights),
                names=tuple(parameter_name(w) for w in wanted.weights),
                dtype=wanted.dtype,
                weight_layout="in_out" if wanted.layout == "in_out" else "out_in",
                rows=rows,
                cols=cols,
                needs_transpose=needs_transpose,
                format=wanted.format,
                placeholders=tuple(node.name for node in nodes),
                decorated=wanted.decorated,
            )
        )
        return tuple(nodes)


def _transposed(wanted: list[tuple[Scope, Wanted, bool]]) -> set[Wanted]:
    """The top-level operands whose transpose some backward needs.

    Uses of one operand agree, and so do the calls of one shared body: they get the same number of operands.
    """
    tops = [(_at_top(scope, want), needed) for scope, want, needed in wanted]
    transposed: set[Wanted] = set()
    while True:
        more = {want for group, needed in tops if needed or transposed & group for want in group} - transposed
        if not more:
            return transposed
        transposed |= more


def _at_top(scope: Scope, wanted: Wanted) -> set[Wanted]:
    chains = zip(*(origins(scope, weight) for weight in wanted.weights), strict=True)
    return {dataclasses.replace(wanted, weights=weights) for weights in chains}


def _by_call(scope: Scope, weights: tuple[fx.Node, ...]) -> list[tuple[fx.Node, ...]]:
    """For each call of a body, the operands that arrive at these placeholders."""
    found = []
    for _, call in scope.calls:
        operands = [call.args[operand_index(call, weight, scope)] for weight in weights]
        found.append(tuple(operand for operand in operands if isinstance(operand, fx.Node)))
    return found


def _placeholder(scope: Scope, name: str, value: object) -> fx.Node:
    placeholders = scope.placeholders()
    taken = {str(placeholder.target) for placeholder in placeholders}
    while name in taken:  # a body may get one weight by two of its placeholders
        name += "_"
    with scope.graph.inserting_after(placeholders[-1]):
        node = scope.graph.placeholder(name)
    node.meta["example_value"] = value
    node.meta["s24"] = {"rule": "operand", "site": name}
    return node
