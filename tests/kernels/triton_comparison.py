"""Running one op on Triton's kernel and on the reference, and comparing what comes out."""

import torch

from s24compile.kernels import ops, providers
from s24compile.kernels.format import FORMATS

BF16 = torch.bfloat16


def both(op, make):
    """What the Triton kernel and the reference make of equal arguments; for ops in place, their arguments after it."""
    results = []
    for provider in ("triton", "reference"):
        args = make()
        with providers.only(provider), torch.no_grad():
            result = getattr(ops, op)(*args)
        leaves = torch.utils._pytree.tree_leaves(args if result is None else result)
        results.append([x for x in leaves if isinstance(x, torch.Tensor)])
    return results


def agree(found, expected, exact):
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())
        if exact or not x.dtype.is_floating_point:
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
        else:  # one rounding of the output dtype, and of fp32 arithmetic in another order before it
            step = torch.finfo(x.dtype).eps
            torch.testing.assert_close(
                x, y, rtol=2 * step, atol=max(4 * step * y.abs().max().item(), 1e-6) if y.numel() else 0
            )


def weight_arguments(rows, k, select, search, layout, dtype, device, format="sm90"):
    """Arguments of pack_weight_, its buffers filled with what nothing of a packed operand is."""
    torch.manual_seed(4)
    weights = [torch.randn((n, k) if layout == "out_in" else (k, n), device=device).to(dtype) for n in rows]
    both_ways = select == "transposable"
    patterns = [
        torch.randint(0, 90 if both_ways else 6, (n // 4 if both_ways else n, k // 4), dtype=torch.uint8).to(device)
        for n in rows
    ]
    own, across, total = FORMATS[format], FORMATS[FORMATS[format].transposed], sum(rows)
    transposed = across.empty(k, total, BF16, torch.device(device)) if both_ways else (None, None)
    packed = *own.empty(total, k, BF16, torch.device(device)), *transposed
    for buffer in packed:
        if buffer is not None:
            buffer.fill_(3)  # what is not written shows
    return weights, patterns, *packed, None, select, search, format, layout
