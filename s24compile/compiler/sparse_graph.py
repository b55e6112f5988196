"""A captured graph as it is called: which weights are dense in this call, what is packed, which variant runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from s24compile import passes
from s24compile.compiler import findings
from s24compile.compiler.inner import Compiled, compile_graph, replays_graphs
from s24compile.compiler.later import LaterVariant, example_of
from s24compile.compiler.phases import planned_phases
from s24compile.compiler.recompute import Recomputation
from s24compile.compiler.rewriting import (
    LayerSlot,
    Rewriting,
    Slot,
    captured_values,
    parameter_places,
    refused_inputs,
    rewrite_graph,
    target_of,
)
from s24compile.config import Config
from s24compile.errors import CompileError
from s24compile.graphs.tracing import trace_graph
from s24compile.kernels.gemm.availability import require_gemm
from s24compile.lowering.cost import FORCE
from s24compile.report import Site
from s24compile.torch_internals.dynamo import forbids_compiling
from s24compile.training.hooks import watch_optimizers
from s24compile.weights.dropped_watch import WATCH
from s24compile.weights.hidden_state import FakeHiddenState, HiddenState, note_counts
from s24compile.weights.packed_inputs import PackedInputs

log = logging.getLogger("s24compile")

Compiler = Callable[[fx.GraphModule, Sequence[Any]], Compiled]
Dense = frozenset[Slot | LayerSlot]
"""What is in its dense phase."""


class SparseGraph:
    """One captured graph and its compiled variants.

    There is a variant per set of operands and layers in their dense phase: usually the empty set, later all of them.
    The first is compiled at once, inside Dynamo; another one when a call needs it. Where `explain` looks, calls run the
    graph as it was captured, and nothing is compiled before the first call of another kind.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        config: Config,
        backend: Compiler,
        *,
        is_decorated: bool = False,
    ) -> None:
        self.config = config
        self.is_decorated = is_decorated
        self.target = target_of(example_inputs, config)
        self.original = passes.copy_graph_module(gm)
        self.places: Mapping[str, int] = parameter_places(self.original, example_inputs)
        self.refused = refused_inputs(self.original, example_inputs, config)
        self.examples = [example_of(given) for given in captured_values(self.original, example_inputs)]
        self.recomputation = Recomputation(backend)
        rewrite = self.rewritten()
        self.slots, self.layers, self.sites = rewrite.slots, rewrite.layers, rewrite.sites
        self.inputs = PackedInputs(self.slots, example_inputs)
        self.variants: dict[Dense, Compiled] = {}
        self.is_ahead = False
        """Whether the planned phases are compiled, too."""
        if findings.wanted() is not None:
            return
        self.begin()
        dense = self.inputs.dense_slots(example_inputs) | self.states(example_inputs)[0]
        if dense:
            rewrite = self.rewritten(dense)
        trace_graph("captured", lambda: passes.format_graph(self.original, "captured"))
        trace_graph("rewritten", lambda: passes.format_graph(rewrite.graph_module, "rewritten"))
        inputs = [*example_inputs, *rewrite.packed_examples()]
        self.variants[dense] = compile_graph(rewrite.graph_module, inputs, config, self.target)

    def begin(self) -> None:
        """What comes before the first variant."""
        self.report()
        if self.slots or self.layers:
            require_gemm(self.target.arch, self.target.format)
            watch_optimizers()

    def rewritten(self, dense: Dense = frozenset()) -> Rewriting:
        """A rewritten copy of the graph, but for what is in `dense`."""
        return rewrite_graph(self.original, self.config, self.target, dense, self.refused)

    def report(self) -> None:
        """Logs each layer; as a warning where the user asked for sparse training and gets none of it in this graph."""
        for site in self.sites:
            log.log(logging.WARNING if self.alarms(site) else logging.INFO, "%s", site.sentence)
        slow = [site for site in self.sites if site.reason.endswith(FORCE)]
        if slow and not self.slots and not self.layers:
            log.warning(
                "no layer of this graph trains 2:4 (%d refused as slower than dense): %s", len(slow), slow[0].reason
            )

    def alarms(self, site: Site) -> bool:
        """Whether nobody who asked for sparse training expects this row.

        A linear alone (an output head) may stay dense in a decorated module that is sparse otherwise.
        """
        if any(sentence in site.reason for sentence in passes.ALARMING):
            return True
        if not site.decorated or site.status == "rewritten":
            return False
        return site.family != "linear" or not any(s.decorated and s.status == "rewritten" for s in self.sites)

    def __call__(self, *args: Any) -> Any:
        found = findings.wanted()
        if found is not None:
            found.add_call(self, args)
            return self.original.forward(*args)
        dense, packed = self.inputs.fresh(args)
        phases: Dense = dense
        states: list[HiddenState | FakeHiddenState] = []
        if self.layers:
            dense_layers, states = self.states(args)
            phases = dense | dense_layers
        if (packed or self.layers) and not torch.is_grad_enabled():
            self.recomputation.follow(args, [place for slot in self.scheduled for place in slot.places])
        if phases not in self.variants:
            self.compile_later(phases, args)
        if not self.is_ahead and forbids_compiling():
            self.is_ahead = True
            for phase in planned_phases(self.scheduled, phases):
                self.compile_later(phase, args)
        results = self.variants[phases](*args, *packed)
        if self.inputs.are_freed:
            self.inputs.pack_before_backward(args, results)
        if not states:
            return results
        own = len(results) - len(states)
        note_counts(states, results[own:], copy=replays_graphs(self.config))
        WATCH.note([state for state in states if isinstance(state, HiddenState)])
        return results[:own]

    @property
    def scheduled(self) -> list[Slot | LayerSlot]:
        """All that has phases."""
        return [*self.slots, *self.layers]

    def states(self, args: Sequence[Any]) -> tuple[frozenset[LayerSlot], list[HiddenState | FakeHiddenState]]:
        """The layers that are dense in this call; the states of those whose counts the graph returns, in order."""
        dense: list[LayerSlot] = []
        counted: list[HiddenState | FakeHiddenState] = []
        for layer in self.layers:
            state = layer.state(args)
            if state.dense:
                dense.append(layer)
            elif layer.request.counted:
                counted.append(state)
        return frozenset(dense), counted

    def compile_later(self, dense: Dense, args: Sequence[Any]) -> None:
        """Compiles a variant outside Dynamo's first capture.

        Args:
            dense: what is in its dense phase.
            args: of a call. They are what it is compiled for; it does not run.

        Raises:
            CompileError: nothing may be compiled any more, and the schedules did not say that it would be.
        """
        is_planned = any(dense in planned_phases(self.scheduled, known) for known in self.variants)
        if forbids_compiling() and self.variants and not is_planned:
            raise CompileError(
                what="a change of phase",
                found="torch.compiler.set_stance('fail_on_recompile') holds, and no option has planned this phase",
                accepted="run a forward in each phase (s24compile.set_phase) before the stance is set",
            )
        if self.variants:
            log.info(
                "compiling the graph again: %d of %d packed operands and 2:4 hidden states are in their dense phase",
                len(dense),
                len(self.scheduled),
            )
        else:
            self.begin()
        later = LaterVariant(self.rewritten(dense), self.config, self.target)
        self.variants[dense] = later.compiled(args, self.examples)
