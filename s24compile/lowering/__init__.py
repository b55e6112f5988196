"""Graph -> graph after AOTAutograd: from s24 ops that mean something to kernels that do it.

Runs on the forward and on the backward graph, the same way for Inductor and for aot_eager. Every pass takes the graph
and the target and returns how many nodes it changed or decided; linting happens here, once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import fx

from s24compile.graphs.tracing import trace_graph
from s24compile.kernels.target import Target
from s24compile.lowering.activation import lower_activations
from s24compile.lowering.casts import absorb_casts
from s24compile.lowering.epilogue import fuse_activation, fuse_activation_backward, fuse_glu, fuse_glu_backward
from s24compile.lowering.hidden import lower_hidden
from s24compile.lowering.layout import choose_layouts
from s24compile.lowering.linear import lower_linear
from s24compile.lowering.memory import is_backward, saved_bytes
from s24compile.lowering.packing import fuse_bias_gradient, fuse_sum_into_activation, share_packs
from s24compile.lowering.printing import print_graph
from s24compile.lowering.quantising import share_quantised, sum_in_epilogue
from s24compile.lowering.residual import absorb_residuals
from s24compile.lowering.seeds import take_seeds
from s24compile.lowering.select import select
from s24compile.report import describe_saved

log = logging.getLogger(__name__)

LOWERING: tuple[Callable[[fx.Graph, Target], int], ...] = (
    lower_linear,
    lower_hidden,
    share_quantised,
    fuse_activation,
    fuse_activation_backward,
    fuse_glu,
    fuse_glu_backward,
    share_packs,
    fuse_bias_gradient,
    lower_activations,
    absorb_residuals,
    absorb_casts,
    choose_layouts,
    fuse_sum_into_activation,
    sum_in_epilogue,
    take_seeds,
    select,
)


def run(graph: fx.Graph, target: Target) -> dict[str, int]:
    """Lowers `graph` in place for `target`.

    Returns:
        What each pass says it did, by its name.

    Raises:
        LoweringError: an s24 node that no kernel takes.
    """
    saved = saved_bytes(graph) if log.isEnabledFor(logging.INFO) else {}
    if saved:
        log.info("for the backward this graph saves %s", describe_saved(saved))
    counts = {step.__name__: step(graph, target) for step in LOWERING}
    graph.lint()
    log.debug("lowered for %s: %s", target, counts)
    trace_graph("backward_lowered" if is_backward(graph) else "forward_lowered", lambda: print_graph(graph))
    return counts
