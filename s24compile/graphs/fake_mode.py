"""The fake mode that a graph was traced with: what new nodes get their fake values from. A leaf."""

from __future__ import annotations

from torch import fx

from s24compile.torch_internals.graphs import FakeTensor, FakeTensorMode


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode | None:
    """The mode of the first fake value: "example_value" on Dynamo's nodes, "val" on AOTAutograd's. None without any."""
    for node in graph.nodes:
        value = node.meta.get("val", node.meta.get("example_value"))
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return None
