"""What the passes share: options from the backend, the graph being rewritten, and what the backend gets back.

T tokens, D model width, F hidden width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import fx

from s24compile.config import Config
from s24compile.graphs.layer import Layer
from s24compile.graphs.marks import config_of
from s24compile.report import Site
from s24compile.torch_internals.graphs import FakeTensorMode
from s24compile.weights.operand_request import LayerRequest, OperandRequest

if TYPE_CHECKING:
    from s24compile.passes.linears import Refusal
    from s24compile.passes.match import Match
    from s24compile.passes.scope import Scope

Profitable = Callable[[Layer], str | None]
"""A sentence for a layer that does not pay, None for one that does."""


@dataclasses.dataclass(frozen=True)
class LinearOptions:
    """How every `s24.linear` of a graph computes; a function of the recipe and of the machine, not of the graph."""

    format: str = "sm90"
    gated_format: str = ""
    """Of a weight whose GEMM also computes the GLU, where the machine has such a GEMM; empty: it has none."""
    dx: str = "sparse"
    """"sparse" (packed W^T), "dense" or "mvue": how the backward gets dX."""
    dw: str = "mvue"
    """"mvue" or "dense": how the backward gets dW; "auto": "mvue" from `mvue_from` input features on."""
    mvue_from: int = 0
    alignment: int = 16
    """Both dims of a weight must be multiples of this (at least 4: the transposable blocks are 4x4)."""
    eight_bit: bool = False
    """Whether all GEMMs multiply eight-bit floats: `s24.scaled_linear` in place of `s24.linear`."""
    impossible: str = ""
    """Why the machine computes no linear so, as a sentence; empty: it does."""
    dense_when: str = ""
    """The part of the run in which it trains dense all the same, in words; empty: none. For the report alone."""

    def dw_of(self, in_features: int) -> str:
        """How a linear of that many input features gets its dW: "mvue" or "dense"."""
        if self.dw != "auto":
            return self.dw
        return "mvue" if in_features >= self.mvue_from else "dense"


@dataclasses.dataclass
class Rewrite:
    """The result of `passes.run`."""

    graph_module: fx.GraphModule
    """A copy: Dynamo's own graph is untouched. The very same nodes as Dynamo's if nothing was rewritten."""
    sites: list[Site]
    operands: list[OperandRequest]
    layers: list[LayerRequest]
    """Those whose hidden state is 2:4. The graph returns the counts of the counted ones, in order, behind its own
    results."""
    count: int
    """Matmuls that are 2:4 now."""
    outside: tuple[str, ...] = ()
    """Parameters that the graph multiplies by in no layer, and which have no row: attention's projections, say."""


@dataclasses.dataclass
class State:
    """One graph on its way through the passes; each pass reads and extends it."""

    graph_module: fx.GraphModule
    scopes: list[Scope]
    """The top-level graph first, then bodies of higher-order ops, parents before children."""
    config: Config
    options: LinearOptions
    profitable: Profitable
    dense: frozenset[str]
    decorated_options: Mapping[str, LinearOptions]
    fuel: int | None
    fake_mode: FakeTensorMode | None
    cut_reason: str = ""
    """Why Dynamo cut this graph, if something did (DDP's optimizer does)."""
    broken_at: str | None = None
    """The user's line at which a graph break ends this graph ("" where it is unknown); None where none does."""
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Placeholder name of a weight that stays dense wherever it is used -> why."""
    given: frozenset[fx.Node] = frozenset()
    """The nodes that Dynamo captured: before any pass, all of them."""
    refusals: dict[fx.Node, Refusal] = dataclasses.field(default_factory=dict)
    """Products by parameters that no rule brings to the canonical form, and why."""
    matches: list[Match] = dataclasses.field(default_factory=list)
    sites: list[Site] = dataclasses.field(default_factory=list)
    operands: list[OperandRequest] = dataclasses.field(default_factory=list)
    layers: list[LayerRequest] = dataclasses.field(default_factory=list)
    results: list[fx.Node] = dataclasses.field(default_factory=list)
    """What the top-level graph is to return behind its own results: the counts of `layers`."""
    count: int = 0
    replaced: list[tuple[torch.Tensor, fx.Node]] = dataclasses.field(default_factory=list)
    """(fake value of a node that is gone, the node that stands for it): verify compares them."""
    outside: tuple[str, ...] = ()
    """As of `Rewrite`."""
    joined: list[tuple[torch.Tensor, fx.Node]] = dataclasses.field(default_factory=list)
    """Likewise, of nodes that are a half of a wider result now, and so have other strides."""

    def options_for(self, decorated: str | None) -> LinearOptions:
        """The options of a linear: those of its own decorator where the backend gave some."""
        return self.decorated_options.get(decorated, self.options) if decorated is not None else self.options

    def config_for(self, decorated: str | None) -> Config:
        """What says which linears are taken: the decorator's own options inside a decorated module."""
        return self.config if decorated is None else config_of(decorated)
