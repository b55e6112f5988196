"""FX graphs: the fake tensors and symbols in them, what Dynamo and AOTAutograd leave on them, and names in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from s24compile.torch_internals.part import Part, needed

with needed:
    from torch._guards import TracingContext
    from torch._logging import trace_structured
    from torch._prims_common import is_contiguous_or_false
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils import _pytree as pytree

__all__ = ["PARTS", "FakeTensor", "FakeTensorMode", "is_contiguous_or_false", "pytree", "trace_structured"]

PARTS = (
    Part("torch._subclasses.fake_tensor.FakeTensor", "what a compiler runs a graph with is taken for real weights"),
    Part("torch._subclasses.fake_tensor.FakeTensorMode", "new nodes of a graph have no shapes"),
    Part("torch.fx.experimental.sym_node.SymNode.hint", "numbers of tokens are not known where they are symbols"),
    Part("torch.utils._pytree", "arguments of nodes are not found inside lists"),
    Part("torch._prims_common.is_contiguous_or_false", "an operand whose layout is a symbol guards on it"),
    Part("torch._logging.trace_structured", "TORCH_TRACE has none of the graphs"),
    Part("torch._guards.TracingContext.try_get", "nobody says how many bytes a forward saves"),
    Part("torch._inductor.decomposition.select_decomp_table", "activations in backward graphs are not fused"),
    Part("torch.fx.Node._erased", "nodes that are gone are matched again",
         on_instances="torch.fx.Graph().placeholder('x')"),
    Part("torch.fx.Graph._codegen", "a rewritten graph has other arguments", on_instances="torch.fx.Graph()"),
    Part("torch._C._set_grad_enabled", "a layer under no_grad is not known as one"),
    Part("torch._transformer_encoder_layer_fwd", "the fast path of nn.TransformerEncoderLayer has no row"),
    Part("torch._native_multi_head_attention", "attention's fast path has no row"),
    Part("torch._C._nn", "activations in place are not known"),
    Part("torch._grouped_mm", "grouped products have no row under this name"),
    Part("torch._sym_sqrt", "sqrt of a size is not known as sqrt"),
    Part("torch.ops.aten._unsafe_view.default", "a view that AOTAutograd inserted hides a product"),
)  # fmt: skip

STATIC_INPUT: Mapping[str, str] = {"_dynamo_static_input_type": "unguarded"}
"""In a placeholder's `meta["tensor_dict"]`: its address stays, so that CUDA graphs need not copy it."""
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Modules that only wrap another; `named_modules()` of the user's model does not show them."""
MODE_PREFIXES = ("_enter", "_exit", "_set", "set_", "_push", "_pop", "_saved", "_grad_", "_vmap_", "_jvp_")
"""How the names of functions begin that Dynamo records for no_grad, autocast, torch.func's levels and the like."""
GRAD_SWITCH = "_set_grad_enabled"
GROUPED_MM = "_grouped_mm"
ENCODER_LAYER = "_transformer_encoder_layer_fwd"
NATIVE_ATTENTION = "_native_multi_head_attention"
SYM_SQRT = "_sym_sqrt"
nn_functions: Any = torch._C._nn
"""The module of gelu, silu_ and others that are written in C."""
set_grad_enabled: Any = torch._C._set_grad_enabled
"""What Dynamo records for no_grad and enable_grad."""
unsafe_view: Any = torch.ops.aten._unsafe_view.default


def hint_of(size: int | torch.SymInt) -> int | None:
    """A size as the number that it has in the example, without a guard on it; None of a symbol that has none."""
    return size if isinstance(size, int) else size.node.hint


def is_erased(node: fx.Node) -> bool:
    """Whether a node is no longer in its graph."""
    return node._erased


def source_of(placeholder: fx.Node) -> Any:
    """Where Dynamo found what arrives at a placeholder; None where it did not say."""
    return getattr(placeholder, "_dynamo_source", None)


def has_source(node: fx.Node) -> bool:
    """Whether a node is an input that Dynamo made."""
    return hasattr(node, "_dynamo_source")


def set_source(placeholder: fx.Node, source: Any) -> None:
    """Sets it, also to None: AOTAutograd asks every input of a Dynamo graph for it."""
    placeholder._dynamo_source = source  # type: ignore[attr-defined]


def copy_signature(old: fx.Graph, new: fx.Graph) -> None:
    """Lets the code of a copied graph take and give what the old one's does."""
    new._codegen = old._codegen


def forward_metadata() -> Any:
    """What AOTAutograd knows of the graphs that it compiles now; None outside."""
    context = TracingContext.try_get()
    return None if context is None else context.fw_metadata


def inductor_decompositions() -> Any:
    """Op -> what Inductor decomposes it into. Imports Inductor."""
    with needed:
        from torch._inductor.decomposition import select_decomp_table
    return select_decomp_table()
