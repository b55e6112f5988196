"""Graphs for those who ask: torch's structured trace, which TORCH_TRACE=dir writes and tlparse shows. A leaf.

The artifacts of a compile are s24_captured, s24_rewritten, s24_forward_lowered and s24_backward_lowered. The same
stages, pass by pass, are in the log at DEBUG: TORCH_LOGS="+s24compile".
"""

from __future__ import annotations

from collections.abc import Callable

from s24compile.torch_internals.graphs import trace_structured


def trace_graph(stage: str, text: Callable[[], str]) -> None:
    """Hands a graph to the structured trace as artifact `s24_<stage>`; costs nothing where nobody traces.

    Args:
        stage: where on its way the graph is.
        text: prints it; called only if somebody listens.
    """
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"s24_{stage}", "encoding": "string"},
        payload_fn=text,
        # A dense-phase variant may be compiled when no Dynamo frame is being traced.
        expect_trace_id=False,
    )
