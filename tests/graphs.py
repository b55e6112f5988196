"""Golden graphs: captures what lowering makes of a model, and prints one line a node.

The printer is lowering's own (`s24compile.lowering.printing`): logs, traces and goldens say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import fx

from s24compile import lowering
from s24compile.kernels.target import Target
from s24compile.lowering.printing import print_graph


@contextmanager
def captured_lowerings(monkeypatch: pytest.MonkeyPatch, target: Target | None = None) -> Iterator[list[str]]:
    """Within the block, the text of every graph that lowering has finished: forward first, then backward.

    With a target, what lowering would make of a copy of the graph there; what runs is lowered for this machine.
    """
    texts: list[str] = []
    original = lowering.run

    def run(graph: fx.Graph, own_target: Target) -> dict[str, int]:
        shown = graph
        if target is not None:
            shown = fx.Graph()
            shown.output(shown.graph_copy(graph, {}))
            original(shown, target)
        counts = original(graph, own_target)
        shown.eliminate_dead_code()
        texts.append(print_graph(shown))
        return counts

    with monkeypatch.context() as patch:
        patch.setattr(lowering, "run", run)
        yield texts
