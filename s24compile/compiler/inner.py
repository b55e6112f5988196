"""The compilers that take the rewritten graph: Inductor, AOTAutograd with eager kernels, or none.

All three run the same lowering (`s24compile.lowering.run`) on the forward and the backward graph, except "eager",
where no AOTAutograd graph exists and the ops choose their kernels as they are called.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from s24compile import lowering
from s24compile.config import Config
from s24compile.errors import OptionError, S24Error
from s24compile.kernels.target import Target
from s24compile.lowering.cost import GRAPH_MODES
from s24compile.lowering.memory import recompute_activations

Compiled = Callable[..., Any]


def compile_graph(gm: fx.GraphModule, inputs: Sequence[Any], config: Config, target: Target) -> Compiled:
    """Compiles a Dynamo-level graph with `config.inner`. Takes ownership of `gm`."""
    return _INNER[config.inner](gm, list(inputs), config, target)


class LoweringPass(CustomGraphPass):
    """`lowering.run` as Inductor calls it, with an identity for Inductor's caches."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(self, graph: fx.Graph) -> None:
        lowering.run(graph, self.target)

    def uuid(self) -> str:
        return f"s24-{_sources_hash()}-{self.target!r}"


class RecomputePass(CustomGraphPass):
    """`recompute_activations` as Inductor calls it, on the joint graph."""

    def __call__(self, graph: fx.Graph) -> None:
        recompute_activations(graph)

    def uuid(self) -> str:
        return f"s24-recompute-{_sources_hash()}"


def inductor_patches(config: Config) -> dict[str, Any]:
    """The Inductor settings that `mode` and `inner_options` stand for.

    Raises:
        OptionError: a mode or a setting that Inductor does not have.
    """
    import torch._inductor.config as settings

    modes = torch._inductor.list_mode_options()
    if config.mode not in (None, "default", *modes):
        raise OptionError(name="mode", value=config.mode, accepted="it must be one of " + ", ".join(map(repr, modes)))
    patches = dict(modes.get(config.mode, {})) if config.mode else {}
    known = settings.get_config_copy()
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
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.exc import InductorError

    patches = inductor_patches(config)
    patches["post_grad_custom_pre_pass"] = _chain(patches, "post_grad_custom_pre_pass", LoweringPass(target))
    if config.memory == "save":
        patches["joint_custom_pre_pass"] = _chain(patches, "joint_custom_pre_pass", RecomputePass())
    try:
        return cast(Compiled, compile_fx(gm, inputs, config_patches=patches))
    except InductorError as error:  # it wraps what a pass raises
        if isinstance(error.inner_exception, S24Error):
            raise error.inner_exception from None
        raise


def _chain(patches: dict[str, Any], name: str, ours: CustomGraphPass) -> Any:
    """Keeps a pass that the user has put at the same place; Inductor has one slot for both."""
    import torch._inductor.config as settings

    theirs = patches.get(name, getattr(settings, name))
    return ours if theirs is None else _Chain(theirs, ours)


class _Chain(CustomGraphPass):
    def __init__(self, first: Any, then: CustomGraphPass) -> None:
        self.first, self.then = first, then

    def __call__(self, graph: fx.Graph) -> None:
        self.first(graph)
        self.then(graph)

    def uuid(self) -> Any | None:
        # A plain function has no uuid; Inductor then bypasses its cache, and so must the chain.
        theirs = self.first.uuid() if isinstance(self.first, CustomGraphPass) else None
        return None if theirs is None else (theirs, self.then.uuid())


def _aot_eager(gm: fx.GraphModule, inputs: list[Any], config: Config, target: Target) -> Compiled:
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    def lowered(graph_module: fx.GraphModule, _: Sequence[Any]) -> Compiled:
        lowering.run(graph_module.graph, target)
        graph_module.recompile()
        return make_boxed_func(graph_module.forward)

    def partition(joint: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        if config.memory == "save":
            recompute_activations(joint.graph)
        return min_cut_rematerialization_partition(joint, *args, **kwargs)

    compiler = aot_autograd(
        fw_compiler=lowered,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )
    return compiler(gm, inputs)


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
    lowered = (path for folder in ("lowering", "kernels") for path in (package / folder).rglob("*.py"))
    # `__init__.py` says the version; the tuned table says which kernel a shape runs.
    others = (package / "__init__.py", *package.rglob("tuned.json"))
    digest = hashlib.sha256()
    for path in sorted((*lowered, *others)):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
