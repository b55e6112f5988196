"""The `torch.compile` backend: from Dynamo's graph to a callable that trains sparse.

The graph is copied, rewritten by `passes`, given the packed weights as further inputs, lowered and compiled. What
comes back looks up the state of the parameters that arrive in each call: one graph serves many layers and models.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from s24compile import passes
from s24compile.compiler.inner import Compiled, compile_graph, replays_graphs
from s24compile.compiler.rewriting import LayerSlot, Rewriting, Slot, gathered_inputs, rewrite_graph, target_of
from s24compile.config import Config
from s24compile.errors import DecoratorError, S24Error, visible_through_dynamo
from s24compile.graphs.tracing import trace_graph
from s24compile.kernels.gemm.availability import require_gemm
from s24compile.lowering.cost import FORCE
from s24compile.report import Site
from s24compile.training.hooks import watch_optimizers
from s24compile.weights.activation_stats import states_of
from s24compile.weights.dropped_watch import WATCH
from s24compile.weights.hidden_state import FakeHiddenState, HiddenState, note_counts
from s24compile.weights.model_state import sparse_weights
from s24compile.weights.packed_inputs import PackedInputs

log = logging.getLogger("s24compile")


def s24(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | Config | None = None,
) -> Compiled:
    """Compiles one Dynamo graph with its feed-forward layers 2:4 sparse: `torch.compile(model, backend="s24")`.

    Args:
        gm: what Dynamo captured; never edited.
        example_inputs: real Parameters, tensors, SymInts, or fakes (DDP).
        mode: Inductor's mode, as given to `torch.compile`.
        options: fields of `s24compile.Config`.

    Raises:
        UnknownOptionError, OptionError: an option that is not accepted.
    """
    try:
        graph = SparseGraph(gm, example_inputs, config_of_call(mode, options))
    except S24Error as error:
        raise visible_through_dynamo(error) from None
    return lambda *args: graph(*args)


def config_of_call(mode: str | None, options: Mapping[str, Any] | Config | None) -> Config:
    """The Config that `torch.compile(..., mode=, options=)` asks for."""
    config = options if isinstance(options, Config) else Config.from_options(options)
    return config if mode is None else dataclasses.replace(config, mode=mode)


class SparseGraph:
    """One captured graph and its compiled variants.

    There is a variant per set of weights that are in their dense phase: usually the empty set, later all of them.
    The first is compiled at once, inside Dynamo; another one when a call needs it.
    """

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], config: Config) -> None:
        self.config = config
        self.target = target_of(example_inputs, config)
        self.original = passes.copy_graph_module(gm)
        self.gathered = gathered_inputs(self.original, example_inputs)
        rewrite = self.rewritten()
        self.slots, self.layers, self.sites = rewrite.slots, rewrite.layers, rewrite.sites
        self.inputs = PackedInputs(self.slots)
        self.report()
        if self.slots or self.layers:
            require_gemm(self.target.arch, self.target.format)
            watch_optimizers()
        dense = self.inputs.dense_slots(example_inputs) | self.states(example_inputs)[0]
        if dense:
            rewrite = self.rewritten(dense)
        trace_graph("captured", lambda: passes.format_graph(self.original, "captured"))
        trace_graph("rewritten", lambda: passes.format_graph(rewrite.graph_module, "rewritten"))
        inputs = [*example_inputs, *rewrite.packed_examples()]
        self.variants: dict[frozenset[Slot | LayerSlot], Compiled] = {
            dense: compile_graph(rewrite.graph_module, inputs, config, self.target)
        }

    def rewritten(self, dense: frozenset[Slot | LayerSlot] = frozenset()) -> Rewriting:
        """A rewritten copy of the graph, but for the slots in `dense`."""
        return rewrite_graph(self.original, self.config, self.target, dense, self.gathered)

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
        dense, packed = self.inputs.fresh(args)
        phases: frozenset[Slot | LayerSlot] = dense
        states: list[HiddenState | FakeHiddenState] = []
        if self.layers:
            dense_layers, states = self.states(args)
            phases = dense | dense_layers
        variant = self.variants.get(phases)
        if variant is None:
            variant = self.variants[phases] = self.compile_later(phases)
        results = variant(*args, *packed)
        if not states:
            return results
        own = len(results) - len(states)
        note_counts(states, results[own:], copy=replays_graphs(self.config))
        WATCH.note([state for state in states if isinstance(state, HiddenState)])
        return results[:own]

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

    def compile_later(self, dense: frozenset[Slot | LayerSlot]) -> Compiled:
        """Compiles a variant outside Dynamo's first capture, by giving the rewritten graph to Dynamo once more.

        Dynamo then owns guards and symbolic shapes, as it did for the first variant.
        """
        log.info(
            "compiling the graph again: %d of %d packed operands and 2:4 hidden states are in their dense phase",
            len(dense),
            len(self.slots) + len(self.layers),
        )
        rewrite = self.rewritten(dense)
        passes.inline_regions(rewrite.graph_module)

        def inner(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
            try:
                return compile_graph(gm, example_inputs, self.config, self.target)
            except S24Error as error:
                raise visible_through_dynamo(error) from None

        return torch.compile(rewrite.graph_module, backend=inner)


class ReadsMarks:
    """A backend under which a decorated module is traced through, with a mark on every node, into the one graph."""


class SparseFFNBackend(ReadsMarks):
    """The backend of a decorated module's own graphs: `s24`, and an account of whether it ran."""

    __name__ = "s24"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.calls = 0
        """Calls of compiled graphs so far: a forward that does not move it ran outside torch.compile, dense."""
        self.refusals: list[str] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        try:
            graph = SparseGraph(gm, example_inputs, self.config)
        except S24Error as error:
            raise visible_through_dynamo(error) from None
        self.refusals += [site.sentence for site in graph.sites if site.status == "refused"]

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run

    def require_sparse(self, module: nn.Module) -> None:
        """Raises DecoratorError unless a weight or a hidden state of `module` has become sparse by now."""
        if not sparse_weights(module) and not states_of(module):
            reasons = "; ".join(self.refusals) or "no feed-forward layer was found in it"
            raise DecoratorError(
                what=type(module).__name__,
                found=f"no layer of it could be made sparse: {reasons}",
                accepted="decorate a module that holds a feed-forward layer; see s24compile.explain(module, *inputs)",
            )


def is_s24_backend(compiler: Any) -> bool:
    """Whether Dynamo's compiler function, through its wrappers, is this backend, or another that reads marks."""
    return _unwrapped(compiler) is not None


def options_of(model: nn.Module) -> Config | None:
    """The options of a model compiled with this backend, as a whole or in place; None for any other model."""
    context = getattr(model, "dynamo_ctx", None)
    in_place = getattr(model, "_compiled_call_impl", None)
    # torch keeps no public way from a compiled callable to its backend.
    held = [cell.cell_contents for cell in getattr(in_place, "__closure__", None) or ()]
    for candidate in (getattr(context, "callback", None), *held):
        wrapper = _unwrapped(candidate)
        if isinstance(wrapper, SparseFFNBackend):
            return wrapper.config
        if wrapper is not None:
            given = getattr(wrapper, "kwargs", {})
            return config_of_call(given.get("mode"), given.get("options"))
    return None


def _unwrapped(compiler: Any) -> Any:
    """The innermost wrapper that still knows the options: torch's own around `s24`, or a ReadsMarks."""
    holder = compiler
    while compiler is not None and compiler is not s24 and not isinstance(compiler, ReadsMarks):
        holder = compiler
        inside = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable", "compiler_fn", "func")
        compiler = next((getattr(compiler, name) for name in inside if getattr(compiler, name, None) is not None), None)
    return compiler if isinstance(compiler, ReadsMarks) else holder if compiler is s24 else None
