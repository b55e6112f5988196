"""What memory_kernels.py checks before it times: each kind of kernel against its reference."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import memory_cases as cases
from s24compile.kernels import ops, providers

BF16, FP32 = torch.bfloat16, torch.float32


def check() -> None:
    """Every kind of case once against its reference: packed bits and patterns equal, activations within rounding."""
    for dtype in (BF16, FP32):
        for turned in (False, True):
            for format, parts in (("sm90", 1), ("sm80", 1), ("sm90_gated", 1), ("sm90_gated", 2)):
                _check_pack(dtype, turned, format, parts)
    before, after = (cases.normal(1024, 3072) > 0 for _ in range(2))
    assert ops.flip_rate(before, after) == _reference("flip_rate", before, after), "flips are counted exactly"
    for turned in (False, True):
        w = cases.normal(1024, 3072, dtype=FP32, turned=turned)
        torch.testing.assert_close(ops.soft_threshold_scale(w), _reference("soft_threshold_scale", w))
    for turned in (False, True):
        g, s = cases.normal(2048, 3072, turned=turned), cases.seed()
        for format in ("sm90", "sm80"):
            found, expected = ops.mvue_pack(g, s, BF16, format), _reference("mvue_pack", g, s, BF16, format)
            assert all(map(torch.equal, found, expected)), "MVUE must agree to the bit"
        z, dh = cases.normal(2048, 6144, turned=turned), cases.normal(2048, 3072, turned=turned)
        torch.testing.assert_close(ops.glu(z, "gelu", "first"), _reference("glu", z, "gelu", "first"))
        dz = ops.glu_backward(dh, z, "gelu", "first")
        torch.testing.assert_close(dz, _reference("glu_backward", dh, z, "gelu", "first"))
    print("checked against the references")


def _check_pack(dtype: torch.dtype, turned: bool, format: str, parts: int) -> None:
    for search in (True, False):
        weights, patterns, *buffers, _, select, _, _, layout = cases.pack_arguments(
            1008, 3072, dtype, "transposable", search, turned, format, parts
        )
        results = []
        for provider in ("triton", "reference"):
            filled = [b.fill_(3).clone() for b in (*patterns, *buffers)]
            numbers, copies = filled[:parts], filled[parts:]
            with providers.only(provider):
                ops.pack_weight_(weights, numbers, *copies, None, select, search, format, layout)
            results.append(filled)
        assert all(map(torch.equal, *results)), f"packing must agree to the bit: {format}, {parts} parts"


def _reference(op: str, *args: Any) -> Any:
    with providers.only("reference"):
        return getattr(ops, op)(*args)
