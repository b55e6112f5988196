"""Writes what a sparse forward computes with into the parameter itself."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from s24compile.sparse_weight import SparseWeight, writing_state


def bake_weight_(weight: SparseWeight, parameter: Parameter) -> None:
    """W becomes M.W; under S-STE beta S(W), and beta 1, since S(beta S(W)) = beta S(W). The mask is kept."""
    with writing_state(parameter.device):
        weight.prepare(parameter)
        if not weight.has_mask:
            weight.search(parameter)
            weight.searched(weight.content(parameter))
        if weight.recipe.soft:
            assert weight.scale is not None
            kept = weight.scale * torch.ops.s24.soft_threshold(weight.logical(parameter.detach()))
            parameter.copy_(weight.as_stored(kept))
            weight.set_scale(torch.ones_like(weight.scale))
        else:
            parameter.masked_fill_(~weight.mask, 0)
