"""`explain()`: what `torch.compile(model, backend="s24")` would rewrite and refuse, without changing the model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from s24compile.backend import ReadsMarks, options_of
from s24compile.config import Config
from s24compile.errors import ModelError
from s24compile.inner import Compiled
from s24compile.kernels.providers import families
from s24compile.kernels.target import Target
from s24compile.report import Report, Site
from s24compile.rewriting import gathered_inputs, rewrite_graph, target_of
from s24compile.sharding import sharded_master


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Report:
    """Captures `model(*args, **kwargs)` with Dynamo and reports on every feed-forward layer in it.

    One dense forward runs, in the model's present train/eval and grad mode; random state and buffers are put back
    afterwards, and no sparse state is created.

    Args:
        model: a module, compiled with the s24 backend or not; a compiled one is explained with its own options.
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
    config = config or options_of(model) or Config()
    inner = getattr(model, "_orig_mod", model)
    capture = _Capture(config, inner)
    with _untouched(inner):
        torch.compile(inner, backend=capture)(*args, **kwargs)
    return capture.report()


class _Capture(ReadsMarks):
    """A backend that runs the passes on every graph, keeps the rows, and runs the graph as it was."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.config, self.model = config, model
        self.sites: list[Site] = []
        self.seen: set[int] = set()
        """ids of the parameters that some graph takes; `model` keeps them alive."""
        self.graphs = 0
        self.target = Target()

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        self.target = target_of(example_inputs, self.config)
        self.graphs += 1
        gathered = gathered_inputs(gm, example_inputs)
        self.sites.extend(rewrite_graph(gm, self.config, self.target, gathered=gathered).sites)

        def run(*args: Any) -> Any:
            # At each call: one graph may serve several layers, where the model breaks into graphs.
            taken = [x for x in args if isinstance(x, nn.Parameter)]
            self.seen.update(id(x if (master := sharded_master(x)) is None else master) for x in taken)
            return gm.forward(*args)

        return run

    def report(self) -> Report:
        linears = [
            (f"{path}.weight" if path else "weight", module.weight)
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
        ]
        return Report(
            sites=tuple(sorted(self.sites, key=_natural)),
            graphs=self.graphs,
            target=str(self.target),
            providers=tuple(families(self.target, ("mm", "mvue_pack", "glu", "pack_weight_")).items()),
            unseen=tuple(name for name, weight in linears if id(weight) not in self.seen),
        )


def _natural(site: Site) -> list[tuple[int, str]]:
    """Sorts "blocks.10" after "blocks.9"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.]", site.path)]


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts random state and buffers (running statistics) back after the forward that `explain` needs.

    Meanwhile a module that is compiled in place (`model.compile()`) is not, or it would run what it has compiled.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    in_place = [m for m in model.modules() if m._compiled_call_impl is not None]
    compiled = [m._compiled_call_impl for m in in_place]
    for module in in_place:
        module._compiled_call_impl = None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for module, call in zip(in_place, compiled, strict=True):
                module._compiled_call_impl = call
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
