"""Between the backend and the passes: which options hold for which part of a graph, and where its operands come from.

Undecorated graphs are rewritten once, with the options of the outer compile. If any node carries the mark of
`sparse_ffn`, only marked nodes are rewritten, each with the options of its own decorator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from s24compile import passes
from s24compile.compiler.inner import replays_graphs
from s24compile.compiler.recompute import sentence_of
from s24compile.config import Config
from s24compile.graphs.marks import config_of, marks_in
from s24compile.kernels.target import Target
from s24compile.lowering.cost import mvue_from, refuse_slow
from s24compile.lowering.select import gated_format, refuse_eight_bit
from s24compile.passes.provenance import parameter_name
from s24compile.recipe import recipe_of
from s24compile.report import Site
from s24compile.torch_internals.function import running_forward
from s24compile.weights.hidden_state import FakeHiddenState, HiddenState, hidden_state
from s24compile.weights.operand import Operand
from s24compile.weights.operand_map import operand
from s24compile.weights.operand_request import LayerRequest, OperandRequest
from s24compile.weights.sharding import problem_of_gathering


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """One packed operand of a compiled graph: what it packs and which call arguments hold the parameters."""

    request: OperandRequest
    places: tuple[int, ...]
    config: Config

    def operand(self, args: Sequence[Any]) -> Operand:
        """The operand of the parameters that arrive in this call."""
        places = self.places
        # Once a forward and slot; most have one weight.
        parameters = (args[places[0]],) if len(places) == 1 else tuple(args[i] for i in places)
        return operand(parameters, self.request, self.config)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerSlot:
    """One layer of a compiled graph whose hidden state is 2:4, and which call arguments hold its parameters."""

    request: LayerRequest
    places: tuple[int, ...]
    config: Config

    def state(self, args: Sequence[Any]) -> HiddenState | FakeHiddenState:
        """The state of the parameters that arrive in this call."""
        return hidden_state([args[place] for place in self.places], self.request, self.config)


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """A rewritten copy of a graph.

    Its last placeholders take the packed tensors of `slots`, in order; its last results are the counts of those of
    `layers` that are counted.
    """

    graph_module: fx.GraphModule
    slots: tuple[Slot, ...]
    layers: tuple[LayerSlot, ...]
    sites: tuple[Site, ...]

    def packed_examples(self) -> list[Any]:
        """Fake tensors for the added placeholders."""
        added = {name for slot in self.slots for name in slot.request.placeholders}
        nodes = self.graph_module.graph.find_nodes(op="placeholder")
        return [node.meta["example_value"] for node in nodes if node.name in added]


def target_of(example_inputs: Sequence[Any], config: Config) -> Target:
    """The target asked for, or the machine that the weights live on; without a weight, that of the first tensor.

    Dynamo's order is inputs first, and those (token ids, lengths, masks) may come from a CPU and be moved in forward.
    """
    if config.target is not None:
        return Target.parse(cast("Target | str", config.target))
    tensors = [x for x in example_inputs if isinstance(x, torch.Tensor) and x.dim() > 0]
    weights = [x for x in tensors if isinstance(x, torch.nn.Parameter) and x.dim() == 2 and x.is_floating_point()]
    devices = (x.device for x in (*weights, *tensors))
    return Target.detect(next(devices, torch.device("cpu")))


def parameter_places(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[str, int]:
    """Parameter name, as in the rows of this graph -> at which of its inputs it arrives."""
    return {parameter_name(node): place for place, node, _ in _parameters(gm, example_inputs)}


def captured_values(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> list[Any]:
    """What a graph was captured with: the example inputs, but fake tensors, which have symbols, for plain real ones."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    return [
        node.meta.get("example_value", given) if type(given) is torch.Tensor else given
        for node, given in zip(placeholders, example_inputs, strict=True)
    ]


def refused_inputs(gm: fx.GraphModule, example_inputs: Sequence[Any], config: Config) -> dict[str, str]:
    """Name of each placeholder at which a parameter arrives that has to stay dense in this graph -> why."""
    running = running_forward()
    found = {}
    placeholders = gm.graph.find_nodes(op="placeholder")
    for node, given in zip(placeholders, example_inputs, strict=True):
        if type(given) is torch.Tensor and (sentence := problem_of_gathering(given, cuda_graphs=False)):
            found[node.name] = sentence
    for _, node, given in _parameters(gm, example_inputs):
        sentence = problem_of_gathering(given, cuda_graphs=replays_graphs(config))
        if sentence or (running is not None and (sentence := sentence_of(given, running))):
            found[node.name] = sentence
    return found


def _parameters(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Iterator[tuple[int, fx.Node, torch.nn.Parameter]]:
    """(place, placeholder, parameter) of each parameter among the inputs."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    for place, (node, given) in enumerate(zip(placeholders, example_inputs, strict=True)):
        if isinstance(given, torch.nn.Parameter):
            yield place, node, given


def rewrite_graph(
    gm: fx.GraphModule,
    config: Config,
    target: Target,
    dense: frozenset[Slot | LayerSlot] = frozenset(),
    refused: Mapping[str, str] | None = None,
) -> Rewriting:
    """Copies `gm` and rewrites its feed-forward layers.

    Left as they are: the operands and layers in `dense`, and the weights that arrive at the placeholders in `refused`.
    """
    places = {node.name: i for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    dense_weights = frozenset(name for slot in dense for name in slot.request.weights)
    by_mark = {label: config_of(label) for label in marks_in(gm)}
    rewrite = passes.run(
        gm,
        config,
        linear_options(config, target),
        profitable=lambda layer: refuse_slow(layer, target, config.min_speedup, config.mode),
        dense=dense_weights,
        refused=refused,
        decorated_options={label: linear_options(own, target) for label, own in by_mark.items()},
    )

    def held(request: OperandRequest | LayerRequest) -> tuple[tuple[int, ...], Config]:
        return tuple(places[name] for name in request.weights), by_mark.get(request.decorated or "", config)

    slots = tuple(Slot(request, *held(request)) for request in rewrite.operands)
    layers = tuple(LayerSlot(request, *held(request)) for request in rewrite.layers)
    return Rewriting(rewrite.graph_module, slots, layers, tuple(rewrite.sites))


def linear_options(config: Config, target: Target) -> passes.LinearOptions:
    """What the passes need to know of recipe and target."""
    recipe, eight_bit = recipe_of(config.recipe), config.precision == "fp8"
    # Else for the narrowest dtype in use, 16 bits; wider ones only exist on the CPU reference.
    alignment = target.alignment(torch.float8_e4m3fn if eight_bit else torch.bfloat16)
    dx = recipe.dx_for(config.input_gradient)
    return passes.LinearOptions(
        format=target.arch.format if eight_bit else target.format,
        gated_format=gated_format(target, "scaled_mm_glu" if eight_bit else "mm_glu"),
        dx=dx,
        dw=config.gradient,
        # A 2:4 hidden state is pruned along tokens in the pass that makes its gradient, for less than unpacking it
        # costs.
        mvue_from=0 if config.hidden else mvue_from(target),
        alignment=alignment,
        eight_bit=eight_bit,
        impossible=refuse_eight_bit(target) if eight_bit else "",
        dense_when=_dense_when(config),
    )


def _dense_when(config: Config) -> str:
    """The part of the run in which sparse weights train dense, in words."""
    if config.dense_from == 0:
        return "always: dense_after=0"
    start = f"for the first {config.sparse_from} optimizer steps" if config.sparse_from else ""
    end = "" if config.dense_from is None else f"after {config.dense_from} optimizer steps"
    return " and ".join(filter(None, (start, end)))
