"""Masked decay [FST 4.2]: g <- g + lambda * (not M) * W, on the gradient.

Legend: grad, w, mask of one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.masks.reference import expand_patterns
from s24compile.kernels.patterns import PatternKind


def masked_decay_(grad: Tensor, w: Tensor, mask: Tensor, alpha: float) -> None:
    """Adds alpha * w to grad where `mask` is False, in fp32 (fp64 for fp64), rounded once to grad's dtype."""
    wide = w if w.dtype == torch.float64 else w.to(torch.float32)
    grad.add_(wide.masked_fill(mask, 0.0), alpha=alpha)


def masked_decay_patterns_(grad: Tensor, w: Tensor, patterns: Tensor, kind: PatternKind, alpha: Tensor) -> None:
    """The same with the mask as pattern numbers (`masks.expand_patterns`) and alpha a 0-d tensor: no host sync."""
    wide = w if w.dtype == torch.float64 else w.to(torch.float32)
    grad.add_(wide.masked_fill(expand_patterns(patterns, kind), 0.0).mul_(alpha.to(wide.device, wide.dtype)))
