"""What `explain` finds: while it looks, compiled graphs run as they were captured, and say what they hold.

So a model is explained as it is, however it was compiled: what would run is what tells, with its own options.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.nn.utils import parametrize

from s24compile.config import Config
from s24compile.kernels.providers import serving
from s24compile.kernels.target import Target
from s24compile.report import Report, Site
from s24compile.weights.sharding import master_of
from s24compile.wrappers import clean_name, named_parameters, unwrapped

OF_WEIGHTS = ("mm", "mvue_pack", "glu", "pack_weight_")
IN_EIGHT_BITS = ("scaled_mm", "scaled_dense", "quantise", "quantise_pack", "glu", "pack_weights_fp8_")
OF_STATES = ("mm", "activation_pack", "activation_backward_pack")
"""The ops whose kernels a report names: of recipes that prune weights, of those with precision="fp8", and of
"activation"."""


def _ops_of(config: Config) -> tuple[str, ...]:
    if config.hidden:
        return OF_STATES
    return IN_EIGHT_BITS if config.precision == "fp8" else OF_WEIGHTS


class Graph(Protocol):
    """A captured graph, as far as `explain` is concerned."""

    config: Config
    target: Target
    sites: tuple[Site, ...]
    places: Mapping[str, int]
    """Parameter name, as in the rows -> at which of its inputs it arrives."""
    is_decorated: bool
    """Whether it is the own graph of a module decorated with `sparse_ffn`."""


class Findings:
    """What has been found so far, in all graphs of a model.

    No graph holds this: Dynamo keeps graphs, and the model must be free to go.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrapped(model)
        self.names = {id(parameter): name for name, parameter in named_parameters(model)}
        self.sites: list[Site] = []
        self.graphs: list[Graph] = []
        self.target = Target()
        self._seen: set[int] = set()
        """ids of the parameters that some graph takes; the caller's model keeps them alive."""
        self._served: set[tuple[int, ...]] = set()

    @property
    def are_of_decorated(self) -> bool:
        """Whether the only graphs were those of decorated modules."""
        return all(graph.is_decorated for graph in self.graphs)

    def add_call(self, graph: Graph, args: Sequence[Any]) -> None:
        """Notes a call of a graph: the parameters that it takes, and its rows under the names of those.

        At each call, because one graph may serve several layers; the same parameters are noted once.
        """
        if not any(graph is known for known in self.graphs):
            self.graphs.append(graph)
        self.target = graph.target
        # Of a parameter that FSDP2 gathered, the one on the module outside of a forward.
        ids = {name: id(master_of(args[place])) for name, place in graph.places.items()}
        call = (id(graph), *ids.values())
        if call in self._served:
            return
        self._served.add(call)
        self._seen.update(ids.values())
        for site in graph.sites:
            # Rows have names as seen from the function that Dynamo compiled, that of a part of the model, it may be.
            for name in site.weights[:1]:
                whole = self.names.get(ids.get(name, 0), name)
                if whole.endswith(f".{name}"):
                    site = _inside(whole.removesuffix(f".{name}"), site)
            self.sites.append(site)

    def report(self) -> Report:
        """The report on the whole model, the one that this was made for."""
        return Report(
            sites=tuple(sorted(self.sites, key=_natural)),
            graphs=len(self.graphs),
            target=str(self.target),
            providers=tuple(serving(self.target, self._ops()).items()),
            unseen=tuple(dict.fromkeys(self._unseen())),
        )

    def _ops(self) -> tuple[str, ...]:
        """The ops whose kernels matter to these graphs; without any graph, those of recipes that prune weights."""
        named = [_ops_of(graph.config) for graph in self.graphs] or [OF_WEIGHTS]
        return tuple(dict.fromkeys(op for ops in named for op in ops))

    def _unseen(self) -> Iterator[str]:
        """Matrices that some product may read, and no graph takes; one that is parametrised by its own name."""
        for path, module in self.model.named_modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag, parametrize.ParametrizationList)):
                continue
            made_of = {name: [parameter] for name, parameter in module.named_parameters(recurse=False)}
            if parametrize.is_parametrized(module):
                made_of |= {name: list(each.parameters()) for name, each in module.parametrizations.items()}
            for name, parameters in made_of.items():
                is_seen = any(id(parameter) in self._seen for parameter in parameters)
                if not is_seen and any(parameter.dim() == 2 for parameter in parameters):
                    yield clean_name(f"{path}.{name}" if path else name)


_present: contextvars.ContextVar[Findings | None] = contextvars.ContextVar("s24_findings", default=None)
wanted = _present.get
"""The findings that a graph which is captured or called now has to be added to; None where it is to train."""


@contextlib.contextmanager
def collecting(findings: Findings) -> Iterator[None]:
    """Inside, the graphs of this thread add themselves to `findings`, and nothing trains."""
    token = _present.set(findings)
    try:
        yield
    finally:
        _present.reset(token)


def _inside(path: str, site: Site) -> Site:
    """A row with the names that it has in the whole model, in which what was compiled is at `path`."""
    return dataclasses.replace(
        site,
        path=f"{path}.{site.path}" if site.path else path,
        weights=tuple(f"{path}.{name}" for name in site.weights),
        linears_at=tuple(f"{path}.{name}" if name else path for name in site.linears_at),
    )


def _natural(site: Site) -> list[tuple[int, str]]:
    """Sorts "blocks.10" after "blocks.9"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.]", site.path)]
