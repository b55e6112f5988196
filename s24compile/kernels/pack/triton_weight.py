"""Packing one operand's weights, one launch a weight.

Legend: N, K logical rows and columns of the stacked weights; W [n, k] one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.stacks import Packing, Stack
from s24compile.kernels.triton.packing import pack_along, pack_transposable
from s24compile.kernels.triton.parts import Buffers, parts, separable
from s24compile.kernels.triton.supports import supports_dtypes, unaligned_operand, uneven_halves


def supports_weight(stack: Stack, scale: Tensor | None, packing: Packing) -> str | None:
    """Whether `pack_weight_` takes the call."""
    values, format = stack.values, packing.format
    if packing.select != "transposable" and not all(pattern.is_contiguous() for pattern in stack.patterns):
        return "takes contiguous pair numbers only"
    unaligned = unaligned_operand(values) or (stack.values_t is not None and unaligned_operand(stack.values_t))
    if unaligned:
        return unaligned
    both_ways, several = stack.values_t is not None, scale is not None and scale.numel() > 1
    if several and not separable(packing.logical(stack.weights), format, both_ways):
        return "takes one scale only for weights that share an atom of 64 rows"
    reasons = (supports_dtypes(w.dtype, values.dtype, format) for w in stack.weights)
    return next((reason for reason in reasons if reason), uneven_halves(values.shape[0], format))


def pack_weight_(stack: Stack, scale: Tensor | None, packing: Packing) -> None:
    """See pack/reference.py. One launch a weight, which reads it once."""
    format, logical = packing.format, packing.logical(stack.weights)
    operand, transposed = Buffers.of(stack.values, stack.metadata, format), None
    if stack.values_t is not None and stack.metadata_t is not None:
        transposed = Buffers.of(stack.values_t, stack.metadata_t, FORMATS[format].transposed)
    if separable(logical, format, transposed is not None):
        _pack_parts(logical, stack.patterns, operand, transposed, scale, packing)
        return
    # Parts that meet within an atom of metadata are copied into one weight first.
    joined = torch.cat(list(stack.patterns))
    _pack_parts([torch.cat(logical)], [joined], operand, transposed, scale, packing)
    for pattern, found in zip(stack.patterns, joined.split([p.shape[0] for p in stack.patterns]), strict=True):
        pattern.copy_(found)


def _pack_parts(
    logical: Sequence[Tensor],
    patterns: Sequence[Tensor],
    operand: Buffers,
    transposed: Buffers | None,
    scale: Tensor | None,
    packing: Packing,
) -> None:
    select, search, format, _ = packing
    found = parts(logical, operand, transposed, format)
    for number, (w, pattern, part) in enumerate(zip(logical, patterns, found, strict=True)):
        if select == "transposable":
            mask = "search" if search else "numbers"
            pack_transposable(w, pattern, part.operand, part.transposed, mask, format, part.split)
        else:
            beta = None if scale is None else scale.expand(len(logical))[number]
            rule = select if search or select == "soft_threshold" else "given"
            pack_along(w.t(), rule, part.operand, format, split=part.split, patterns=pattern, scale=beta)
