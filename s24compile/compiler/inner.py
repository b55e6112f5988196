"""The compilers that take the rewritten graph: Inductor, AOTAutograd with eager kernels, or none.

All three run the same lowering (`s24compile.lowering.run`) on the forward and the backward graph, except "eager",
where no AOTAutograd graph exists and the ops choose their kernels as they are called.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from s24compile import lowering
from s24compile.config import Config
from s24compile.errors import OptionError
from s24compile.kernels import providers
from s24compile.kernels.target import Target
from s24compile.lowering.cost import GRAPH_MODES
from s24compile.lowering.memory import recompute_activations
from s24compile.torch_internals.compilers import (
    Compiled,
    GraphPass,
    compile_by_aot_autograd,
    compile_by_inductor,
    has_identity,
    inductor_settings,
)
from s24compile.torch_internals.dynamo import compiling
from s24compile.torch_internals.modes import inductor_modes


def compile_graph(gm: fx.GraphModule, inputs: Sequence[Any], config: Config, target: Target) -> Compiled:
    """Compiles a Dynamo-level graph with `config.inner`. Takes ownership of `gm`."""
    return _INNER[config.inner](gm, list(inputs), config, target)


class LoweringPass(GraphPass):
    """`lowering.run` as Inductor calls it, with an identity for Inductor's caches."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(self, graph: fx.Graph) -> None:
        with compiling():
            lowering.run(graph, self.target)

    def uuid(self) -> str:
        # Within `providers.only(...)` the same graph is lowered to other kernels.
        return f"s24-{_sources_hash()}-{self.target!r}-{providers.forced()}"


class RecomputePass(GraphPass):
    """`recompute_activations` as Inductor calls it, on the joint graph."""

    def __call__(self, graph: fx.Graph) -> None:
        recompute_activations(graph)

    def uuid(self) -> str:
        return f"s24-recompute-{_sources_hash()}"


def inductor_patches(config: Config) -> dict[str, Any]:
    """The Inductor settings that `mode` and `inner_options` stand for.

    Raises:
        OptionError: a setting that Inductor does not have.
    """
    patches = dict(inductor_modes()[config.mode or "default"])
    known = inductor_settings()
    for name, value in config.inner_options or ():
        name = name.replace("-", "_")
        if name not in known:
            raise OptionError(name="inner_options", value=name, accepted="keys are fields of torch._inductor.config")
        patches[name] = value
    return patches


def replays_graphs(config: Config) -> bool:
    """Whether the compiled graph may be replayed as a CUDA graph, in whose memory its results then lie."""
    options = dict(config.inner_options or ())
    return config.mode in GRAPH_MODES or bool(options.get("triton.cudagraphs"))


def _inductor(gm: fx.GraphModule, inputs: list[Any], config: Config, target: Target) -> Compiled:
    patches = inductor_patches(config)
    patches["post_grad_custom_pre_pass"] = _chain(patches, "post_grad_custom_pre_pass", LoweringPass(target))
    if config.memory == "save":
        patches["joint_custom_pre_pass"] = _chain(patches, "joint_custom_pre_pass", RecomputePass())
    return compile_by_inductor(gm, inputs, patches)


def _chain(patches: dict[str, Any], name: str, ours: GraphPass) -> Any:
    """Keeps a pass that the user has put at the same place; Inductor has one slot for both."""
    theirs = patches.get(name, inductor_settings()[name])
    return ours if theirs is None else _Chain(theirs, ours)


class _Chain(GraphPass):
    def __init__(self, first: Any, then: GraphPass) -> None:
        self.first, self.then = first, then

    def __call__(self, graph: fx.Graph) -> None:
        self.first(graph)
        self.then(graph)

    def uuid(self) -> Any | None:
        # A plain function has no uuid; Inductor then bypasses its cache, and so must the chain.
        theirs = self.first.uuid() if has_identity(self.first) else None
        return None if theirs is None else (theirs, self.then.uuid())


def _aot_eager(gm: fx.GraphModule, inputs: list[Any], config: Config, target: Target) -> Compiled:
    def lower(graph: fx.Graph) -> None:
        with compiling():
            lowering.run(graph, target)

    def before_partition(graph: fx.Graph) -> None:
        if config.memory == "save":
            recompute_activations(graph)

    return compile_by_aot_autograd(gm, inputs, lower, before_partition)


def _eager(gm: fx.GraphModule, inputs: list[Any], config: Config, target: Target) -> Compiled:
    return gm.forward


_INNER: dict[str, Callable[[fx.GraphModule, list[Any], Config, Target], Compiled]] = {
    "inductor": _inductor,
    "aot_eager": _aot_eager,
    "eager": _eager,
}


@functools.cache
def _sources_hash(package: Path = Path(__file__).parents[1]) -> str:
    """Changes whenever a lowered graph may, so that Inductor never serves one that another version has lowered.

    Lowering puts the bodies of references into the graph, and asks `kernels` for names, schemas and who takes what.
    """
    folders = ("lowering", "kernels", "graphs", "torch_internals")
    lowered = (path for folder in folders for path in (package / folder).rglob("*.py"))
    # `__init__.py` says the version; the tuned table says which kernel a shape runs.
    others = (package / "__init__.py", *package.rglob("tuned.json"))
    digest = hashlib.sha256()
    for path in sorted((*lowered, *others)):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
