"""Contracts of masked decay. Legend: grad, w, mask of one shape; patterns as in `selection`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from s24compile.kernels.ops.contract import contract


@contract(mutates=("grad",))
def masked_decay_(grad: Tensor, w: Tensor, mask: Tensor, alpha: float) -> None:
    """grad += alpha * w where the bool mask is False."""


@contract(mutates=("grad",))
def masked_decay_patterns_(grad: Tensor, w: Tensor, patterns: Tensor, kind: str, alpha: Tensor) -> None:
    """The same with the mask as pattern numbers and alpha a 0-d tensor, so that no value crosses to the host."""


@contract(mutates=("grads",), short=True)
def masked_decay_many_(
    grads: Sequence[Tensor], weights: Sequence[Tensor], patterns: Sequence[Tensor], kind: str, alpha: Tensor
) -> None:
    """`masked_decay_patterns_` of many gradients in a few launches, all by the same alpha (0-d)."""
