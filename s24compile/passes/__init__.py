"""Graph to graph, on what a `torch.compile` backend receives: finds feed-forward layers and makes them 2:4 sparse.

`PASSES` is the whole pipeline. Each pass is a function of the `State` that returns a count; rules are values in the
lists `canonicalize.SPELLINGS` and `find.FINDERS`.

    canonicalize   one spelling for each linear, activation and gate       linears, activations, gates, inplace,
                                                                           effects
    find           layers of each family, and lookalikes                   plain, gated, lookalikes, unknown, broken,
                                                                           heads
    decide         scope, shapes, dtypes, phase, other uses, fuel          policy, hidden
    rewrite        s24.linear and s24.glu, packed weights as inputs;       operands, rewrite_hidden, results
                   s24.activation_layer, its counts as results
    rewrite_dense  what multiplies eight-bit floats without being 2:4
    note_saved     bytes that each layer keeps for the backward            saved
    verify         the invariants

S24_FUEL=n in the environment lets only the first n sites be rewritten, to bisect a wrong number.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from torch import fx

from s24compile.config import Config
from s24compile.errors import OptionError
from s24compile.graphs.fake_mode import fake_mode_of
from s24compile.passes.canonicalize import canonicalize
from s24compile.passes.checks import DDP_SENTENCE, EIGHT_BIT_SENTENCE
from s24compile.passes.find import find
from s24compile.passes.outside import DTENSOR_SENTENCE, FASTPATH_SENTENCE
from s24compile.passes.policy import decide
from s24compile.passes.printing import format_graph
from s24compile.passes.provenance import user_place
from s24compile.passes.regions import inline_regions
from s24compile.passes.rewrite import rewrite
from s24compile.passes.rewrite_dense import rewrite_dense
from s24compile.passes.saved import note_saved
from s24compile.passes.scope import copy_scopes
from s24compile.passes.state import LinearOptions, Profitable, Rewrite, State
from s24compile.passes.verify import verify
from s24compile.weights.operand_request import LayerRequest, OperandRequest
from s24compile.weights.sharding import GATHERING_SENTENCES

__all__ = [
    "ALARMING",
    "PASSES",
    "LayerRequest",
    "LinearOptions",
    "OperandRequest",
    "Rewrite",
    "copy_graph_module",
    "format_graph",
    "inline_regions",
    "run",
]

log = logging.getLogger("s24compile.passes")

ALARMING = frozenset(
    {DDP_SENTENCE, DTENSOR_SENTENCE, FASTPATH_SENTENCE, *GATHERING_SENTENCES, EIGHT_BIT_SENTENCE.partition(":")[0]}
)
"""Refusals of whole graphs or models that nobody who asked for sparse training expects; logged as warnings."""

PASSES: tuple[Callable[[State], int], ...] = (canonicalize, find, decide, rewrite, rewrite_dense, note_saved, verify)


def run(
    gm: fx.GraphModule,
    config: Config,
    options: LinearOptions,
    *,
    profitable: Profitable = lambda layer: None,
    dense: frozenset[str] = frozenset(),
    refused: Mapping[str, str] | None = None,
    decorated_options: Mapping[str, LinearOptions] | None = None,
    passes: tuple[Callable[[State], int], ...] = PASSES,
) -> Rewrite:
    """Rewrites a copy of a Dynamo graph.

    Args:
        gm: as Dynamo captured it; not touched.
        config: scope of the rewrite (targets, include, exclude).
        options: how the linears compute.
        profitable: a sentence for a layer that does not pay, None for one that does.
        dense: placeholder names of weights in their dense phase.
        refused: placeholder name of a weight that stays dense wherever it is used -> why.
        decorated_options: options by mark of a `sparse_ffn` module, instead of `options`.
        passes: another pipeline, for tests.

    Raises:
        LoweringError: an invariant of the passes is broken.
        OptionError: S24_FUEL is no number.
    """
    copy, scopes = copy_scopes(gm)
    state = State(
        copy, scopes, config, options, profitable, dense, decorated_options or {}, _fuel(), fake_mode_of(copy.graph),
        cut_reason=_cut_reason(gm), broken_at=_broken_at(gm), refused=refused or {},
        given=frozenset(node for scope in scopes for node in scope.graph.nodes),
    )  # fmt: skip
    log.debug("%s", _Printed("captured", copy))
    for function in passes:
        count = function(state)
        log.debug("%s", _Printed(f"after {function.__name__} ({count})", copy))
    if not state.count and not any(match.narrow for match in state.matches):
        # Nothing is 2:4 or in eight bits, so nothing needs another spelling either.
        state.graph_module = copy_graph_module(gm)
    for scope in state.scopes:
        scope.module.recompile()
    return Rewrite(state.graph_module, state.sites, state.operands, state.layers, state.count, state.outside)


def copy_graph_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of a Dynamo graph and of its bodies; Dynamo reads its own after the backend returns."""
    return copy_scopes(gm)[0]


class _Printed:
    """A graph that is put into words only if somebody logs it."""

    def __init__(self, title: str, gm: fx.GraphModule) -> None:
        self.title, self.gm = title, gm

    def __str__(self) -> str:
        return format_graph(self.gm, self.title)


def _fuel() -> int | None:
    text = os.environ.get("S24_FUEL", "")
    if not text:
        return None
    if not text.isdigit():
        raise OptionError(name="S24_FUEL", value=text, accepted="it must be a whole number of rewrites")
    return int(text)


def _broken_at(gm: fx.GraphModule) -> str | None:
    reason = getattr(gm, "compile_subgraph_reason", None)
    if not getattr(reason, "graph_break", False):
        return None
    return user_place((frame.filename, frame.lineno or 0) for frame in getattr(reason, "user_stack", ()))


def _cut_reason(gm: fx.GraphModule) -> str:
    reason = getattr(getattr(gm, "compile_subgraph_reason", None), "reason", "")
    return DDP_SENTENCE if str(reason).startswith("DDPOptimizer") else ""
