"""What the next sparse forward computes with, read off the live state; model and state are left as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s24compile.errors import ModelError
from s24compile.weights.mask import writing_state
from s24compile.weights.model_state import sparse_weights
from s24compile.weights.sharding import as_computed, whole_of
from s24compile.weights.sparse_weight import SparseWeight


def baked_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> M.W (under S-STE beta S(W)): a new dense tensor of the parameter's shape, layout and dtype.

    Of weights that FSDP2 shards all processes must ask, and get the whole; under tensor parallel each gets its part.

    Raises:
        ModelError: no weight of the model is sparse yet, one has no mask yet, or one trains dense now.
    """
    weights = sparse_weights(model)
    if not weights:
        raise ModelError(
            what="export",
            found="the model has no sparse weights",
            accepted="compile it with backend='s24' and run a forward, or load its s24 state and run one, first",
        )
    for name, weight in weights.items():
        problem = "is in its dense phase, and uses all its elements" if weight.phase == "dense" else None
        if problem is None and not weight.has_mask:
            problem = "has not been through a forward, and has no mask yet"
        if problem is not None:
            raise ModelError(
                what="export",
                found=f"weight {name!r} {problem}",
                accepted="export sparse weights after a sparse forward (s24compile.set_phase(model, 'sparse'))",
            )
    return {name: _baked(weight) for name, weight in weights.items()}


def _baked(weight: SparseWeight) -> Tensor:
    parameter = weight.parameter()
    assert parameter is not None, "sparse_weights found it through its parameter"
    whole = whole_of(parameter)
    with writing_state(whole.device):
        if not weight.recipe.soft:
            # The forward that would search a mask may never come: a run ends with a step.
            return torch.where(weight.mask_of(weight.next_patterns(as_computed(parameter, whole))), whole, 0.0)
        assert weight.scale is not None, "a weight with a mask has its scale"
        kept = weight.scale.to(whole.device) * torch.ops.s24.soft_threshold(weight.logical(whole))
        return weight.as_stored(kept).to(whole.dtype).contiguous()
