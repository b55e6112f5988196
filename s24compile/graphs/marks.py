"""The mark that `sparse_ffn` leaves on every graph node of a decorated module. A leaf.

`torch.fx.traceback.annotate(mark(config))` puts it under `node.meta["custom"]`, where it survives inlining into any
outer graph. It is the decorator's options as JSON, so that no registry has to map it back.
"""

from __future__ import annotations

import dataclasses
import functools
import json

from torch import fx

from s24compile.config import Config

KEY = "s24_sparse_ffn"


def mark(config: Config) -> dict[str, str]:
    """The annotation that says: this node belongs to a module decorated with `config`."""
    # The recipe first: the defaults of the others are the recipe's.
    changed = {} if config.recipe == Config().recipe else {"recipe": config.recipe}
    defaults = Config(recipe=config.recipe)
    changed |= {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "target" and getattr(config, field.name) != getattr(defaults, field.name)
    }
    return {KEY: json.dumps(changed, default=str)}


def mark_of(node: fx.Node) -> str | None:
    """The mark on a node, or None for a node outside every decorated module."""
    return (node.meta.get("custom") or {}).get(KEY)


@functools.cache  # asked once a linear
def config_of(label: str) -> Config:
    """The options that a mark stands for."""
    options = json.loads(label)
    if "inner_options" in options:
        options["inner_options"] = dict(options["inner_options"])
    return Config.from_options(options)


def marks_in(gm: fx.GraphModule) -> tuple[str, ...]:
    """The distinct marks of a graph and the bodies of its higher-order ops, in order of appearance."""
    graphs = (module.graph for module in gm.modules() if isinstance(module, fx.GraphModule))
    found = (mark_of(node) for graph in graphs for node in graph.nodes if node.op != "placeholder")
    return tuple(dict.fromkeys(label for label in found if label is not None))
