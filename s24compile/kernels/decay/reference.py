"""Masked decay [FST 4.2]: g <- g + lambda * (not M) * W, on the gradient.

Legend: grad, w, mask of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from s24compile.kernels.masks.reference import expand_patterns
from s24compile.kernels.rounding import widen


def masked_decay_(grad: Tensor, w: Tensor, mask: Tensor, alpha: float) -> None:
    """Adds alpha * w to grad where `mask` is False, in fp32 (fp64 for fp64), rounded once to grad's dtype."""
    wide = widen(w)
    grad.add_(wide.masked_fill(mask, 0.0), alpha=alpha)


def masked_decay_patterns_(grad: Tensor, w: Tensor, patterns: Tensor, kind: str, alpha: Tensor) -> None:
    """The same with the mask as pattern numbers (`masks.expand_patterns`) and alpha a 0-d tensor: no host sync."""
    wide = widen(w)
    grad.add_(wide.masked_fill(expand_patterns(patterns, kind), 0.0).mul_(alpha.to(wide.device, wide.dtype)))


def masked_decay_many_(
    grads: Sequence[Tensor], weights: Sequence[Tensor], patterns: Sequence[Tensor], kind: str, alpha: Tensor
) -> None:
    """`masked_decay_patterns_` of many gradients, all by the same alpha (0-d)."""
    for grad, w, pattern in zip(grads, weights, patterns, strict=True):
        masked_decay_patterns_(grad, w, pattern, kind, alpha)
