"""The compilers behind Dynamo: Inductor, AOTAutograd, its partitioner, and where passes of ours go into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import fx

from s24compile.torch_internals.part import Part, needed

with needed:
    from torch._inductor.custom_graph_pass import CustomGraphPass

PARTS = (
    Part("torch._inductor.custom_graph_pass.CustomGraphPass", "Inductor's caches do not know our passes apart"),
    Part("torch._inductor.config.post_grad_custom_pre_pass", "nothing is lowered under inner='inductor'"),
    Part("torch._inductor.config.joint_custom_pre_pass", "memory='save' saves nothing under inner='inductor'"),
    Part("torch._inductor.config.get_config_copy", "a misspelt inner_options is not noticed"),
    Part("torch._inductor.compile_fx.compile_fx", "there is no inner='inductor'"),
    Part("torch._inductor.exc.InductorError", "an error of lowering reaches the user inside one of Inductor's"),
    Part("torch._dynamo.backends.common.aot_autograd", "there is no inner='aot_eager'"),
    Part("torch._functorch.aot_autograd.make_boxed_func", "inner='aot_eager' keeps its inputs alive"),
    Part("torch._functorch.partitioners.min_cut_rematerialization_partition", "inner='aot_eager' keeps what "
         "checkpointing leaves out"),
)  # fmt: skip

Compiled = Callable[..., Any]


class GraphPass(CustomGraphPass):
    """A pass that Inductor calls with a graph. `uuid()` says which, for its caches: equal ones do the same."""


def has_identity(step: object) -> bool:
    """Whether Inductor's caches can tell a user's own pass from another; a plain function makes them useless."""
    return isinstance(step, CustomGraphPass)


def inductor_settings() -> dict[str, Any]:
    """All settings of Inductor and their present values."""
    with needed:
        import torch._inductor.config as settings

    return settings.get_config_copy()


def compile_by_inductor(gm: fx.GraphModule, inputs: list[Any], settings: Mapping[str, Any]) -> Compiled:
    """Compiles a Dynamo graph. What a pass raises comes out as it is."""
    with needed:
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.exc import InductorError

    try:
        return cast(Compiled, compile_fx(gm, inputs, config_patches=dict(settings)))
    except InductorError as error:
        raise error.inner_exception from None


def compile_by_aot_autograd(
    gm: fx.GraphModule,
    inputs: list[Any],
    lower: Callable[[fx.Graph], object],
    before_partition: Callable[[fx.Graph], object],
) -> Compiled:
    """Compiles a Dynamo graph into a forward and a backward graph that run op by op.

    Args:
        lower: changes each of the two.
        before_partition: changes the graph of both.
    """
    with needed:
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.aot_autograd import make_boxed_func
        from torch._functorch.partitioners import min_cut_rematerialization_partition

    def lowered(module: fx.GraphModule, _: object) -> Compiled:
        lower(module.graph)
        module.recompile()
        return cast(Compiled, make_boxed_func(module.forward))

    def partition(joint: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        before_partition(joint.graph)
        return min_cut_rematerialization_partition(joint, *args, **kwargs)

    compiler = aot_autograd(fw_compiler=lowered, partition_fn=partition, keep_inference_input_mutations=True)
    return compiler(gm, inputs)
