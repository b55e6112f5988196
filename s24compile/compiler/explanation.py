"""`explain()`: what `torch.compile(model, backend="s24")` would rewrite and refuse, without changing the model."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from s24compile.compiler.backend import ReadsMarks, options_of
from s24compile.compiler.inner import Compiled
from s24compile.compiler.rewriting import gathered_inputs, parameter_places, rewrite_graph, target_of
from s24compile.config import Config
from s24compile.errors import ModelError
from s24compile.kernels.providers import serving
from s24compile.kernels.target import Target
from s24compile.report import Report, Site
from s24compile.training.random_state import RandomState
from s24compile.weights.sharding import sharded_master
from s24compile.wrappers import clean_name, named_parameters, unwrapped


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Report:
    """Captures `model(*args, **kwargs)` with Dynamo and reports on every feed-forward layer in it.

    One dense forward runs, in the model's present train/eval and grad mode; buffers and the random state of torch,
    Python and NumPy are put back afterwards, and no sparse state is created.

    Args:
        model: a module, compiled with the s24 backend or not; a compiled one is explained with its own options. Where
            modules inside it are compiled one by one instead, each is explained with its own, and nothing else.
        args, kwargs: example inputs of its forward.

    Returns:
        A `Report`; `str(report)` is a table with a reason for each layer.

    Raises:
        ModelError: `model` is no module.
    """
    return explain_with(model, args, kwargs, None)


def explain_with(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], config: Config | None) -> Report:
    """`explain` with the options given (None: those that the model was compiled with, else the defaults)."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            what="explain", found=f"a {type(model).__name__} was given",
            accepted="give it the torch.nn.Module and example inputs: explain(model, *args, **kwargs)",
        )  # fmt: skip
    config = config or options_of(model)
    inner = getattr(model, "_orig_mod", model)
    findings = _Findings(inner)
    in_place = inner is model and inner._compiled_call_impl is not None
    regions = _regions(inner) if config is None and inner is model and not in_place else []
    with _untouched(inner):
        if regions:
            _run_regions(inner, regions, findings, args, kwargs)
        else:
            # As `model.compile()` compiles: Dynamo then skips forwards of torch's own modules, which stay dense.
            call = inner._call_impl if in_place else inner
            _compile_apart(call, _Capture(config or Config(), findings))(*args, **kwargs)
    return findings.report(inner)


OF_WEIGHTS = ("mm", "mvue_pack", "glu", "pack_weight_")
OF_STATES = ("mm", "activation_pack", "activation_backward_pack")
"""The ops whose kernels a report names: of recipes that prune weights, and of "activation"."""


class _Findings:
    """What has been found so far, in all graphs of a model.

    No tensor and no module is kept here: Dynamo's cache holds what it compiled, that holds this, and the model must
    be free to go.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(parameter): name for name, parameter in named_parameters(model)}
        self.sites: list[Site] = []
        self.seen: set[int] = set()
        """ids of the parameters that some graph takes; the caller's model keeps them alive."""
        self.ops: tuple[str, ...] = ()
        self.graphs = 0
        self.target = Target()

    def add_call(self, sites: Sequence[Site], places: Mapping[str, int], args: Sequence[Any]) -> None:
        """Notes a call of a graph: the parameters that it takes, and its rows under the names of those.

        Args:
            sites: the graph's rows, with names as seen from the function that Dynamo compiled: that of a part of the
                model, where the model is compiled by parts or breaks into graphs.
            places: at which of `args` each parameter arrives.
        """
        ids = {name: id(_owned(args[place])) for name, place in places.items()}
        self.seen.update(ids.values())
        for site in sites:
            for name in site.weights[:1]:
                whole = self.names.get(ids.get(name, 0), name)
                if whole.endswith(f".{name}"):
                    site = _inside(whole.removesuffix(f".{name}"), site)
            self.sites.append(site)

    def report(self, model: nn.Module) -> Report:
        """The report on the whole model, the one that this was made for."""
        unseen = [
            f"{path}.weight" if path else "weight"
            for path, module in unwrapped(model).named_modules()
            if isinstance(module, nn.Linear) and not any(id(p) in self.seen for p in _weights_of(module))
        ]
        return Report(
            sites=tuple(sorted(self.sites, key=_natural)),
            graphs=self.graphs,
            target=str(self.target),
            providers=tuple(serving(self.target, self.ops).items()),
            unseen=tuple(clean_name(name) for name in unseen),
        )


class _Capture(ReadsMarks):
    """A backend that runs the passes on every graph, keeps the rows, and runs the graph as it was."""

    def __init__(self, config: Config, findings: _Findings) -> None:
        self.config, self.findings = config, findings

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        findings = self.findings
        findings.target = target_of(example_inputs, self.config)
        findings.ops = tuple(dict.fromkeys((*findings.ops, *(OF_STATES if self.config.hidden else OF_WEIGHTS))))
        findings.graphs += 1
        gathered = gathered_inputs(gm, example_inputs)
        rewrite = rewrite_graph(gm, self.config, findings.target, gathered=gathered)
        places = parameter_places(gm, example_inputs)
        served: set[tuple[int, ...]] = set()

        def run(*args: Any) -> Any:
            # At each call: one graph may serve several layers.
            layer = tuple(id(args[place]) for place in places.values())
            if layer not in served:
                served.add(layer)
                findings.add_call(rewrite.sites, places, args)
            return gm.forward(*args)

        return run


_Region = tuple[nn.Module, Config]
"""A module that is compiled by itself, and the options that it trains with."""


def _regions(model: nn.Module) -> list[_Region]:
    """The modules inside a model that is not compiled as a whole which are compiled with s24; [] where none is.

    Decorated modules compile themselves: among compiled ones they are regions too, alone they don't count.
    """
    compiled = [(module, options) for module in model.modules() if (options := options_of(module)) is not None]
    if not compiled:
        return []
    found = {id(module) for module, _ in compiled}
    decorated = [
        (module, module.forward.s24_config)
        for module in model.modules()
        if id(module) not in found and not hasattr(module, "_orig_mod") and hasattr(module.forward, "s24_config")
    ]
    return compiled + decorated


def _run_regions(
    model: nn.Module, regions: Sequence[_Region], findings: _Findings, args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """One forward in which each region is captured with its own options, and everything else runs as it is.

    Call inside `_untouched`, which puts back what is changed here.
    """
    # As in training, equal options are one backend to Dynamo, and layers of one class share its graphs.
    captures = {config: _Capture(config, findings) for _, config in regions}
    for module, config in regions:
        whole = getattr(module, "_orig_mod", None)
        # Not by setattr: a module that `torch.compile` returned passes that on to the one inside.
        module.__dict__["_compiled_call_impl"] = _compile_apart(
            module._call_impl if whole is None else whole, captures[config]
        )
    model(*args, **kwargs)


def _compile_apart(call: Callable[..., Any], capture: _Capture) -> Callable[..., Any]:
    """`call`, compiled without using up what Dynamo allows each function: eight compilations, and then it runs eagerly.

    Torch before 2.13 cannot tell them apart: there many different explanations leave fewer for training.
    """
    apart: dict[str, Any] = {"isolate_recompiles": True} if _CAN_ISOLATE else {}
    compiled: Callable[..., Any] = torch.compile(call, backend=capture, **apart)
    return compiled


_CAN_ISOLATE = "isolate_recompiles" in inspect.signature(torch.compile).parameters


def _inside(path: str, site: Site) -> Site:
    """A row with the names that it has in the whole model, in which what was compiled is at `path`."""
    weights = tuple(f"{path}.{name}" for name in site.weights)
    return dataclasses.replace(site, path=f"{path}.{site.path}" if site.path else path, weights=weights)


def _weights_of(module: nn.Linear) -> list[nn.Parameter]:
    """Its weight; of a parametrised one, the parameters that the weight is computed from."""
    weight = module._parameters.get("weight")
    return [weight] if weight is not None else [p for name, p in module.named_parameters() if name != "bias"]


def _owned(parameter: nn.Parameter) -> nn.Parameter:
    """The object on the module: of a parameter that FSDP2 gathered, its shard."""
    master = sharded_master(parameter)
    return parameter if master is None else master


def _natural(site: Site) -> list[tuple[int, str]]:
    """Sorts "blocks.10" after "blocks.9"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.]", site.path)]


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts random state and buffers (running statistics) back after the forward that `explain` needs.

    Meanwhile a module that is compiled (`model.compile()`, `torch.compile(module)`) is not.
    """
    drawn = RandomState()
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    compiled = [(m, m.__dict__.get("_compiled_call_impl")) for m in model.modules()]
    for module, _ in compiled:
        # One that `torch.compile` returned would otherwise run what it has compiled, where no outer graph inlines it.
        module.__dict__["_compiled_call_impl"] = getattr(module, "_orig_mod", None)
    try:
        yield
    finally:
        for module, call in compiled:
            module.__dict__["_compiled_call_impl"] = call
        drawn.restore()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
