"""The GEMMs of the FFNs that people train: D[m, n] = S[m, k] B[k, n], S 2:4-sparse.

Legend: T tokens, D model width, F hidden width (both projections together where the FFN is gated).
"""

from __future__ import annotations

import dataclasses

FFNS: dict[str, tuple[int, int, int]] = {
    "gpt2-124m, bert-base": (768, 3072, 3072),
    "gpt2-350m, vit-l": (1024, 4096, 4096),
    "gpt2-774m": (1280, 5120, 5120),
    "gpt2-1558m": (1600, 6400, 6400),
    "llama-7b": (4096, 22016, 11008),
    "llama-8b": (4096, 28672, 14336),
    "llama-13b": (5120, 27648, 13824),
    "llama-70b": (8192, 57344, 28672),
}
"""Model -> D, rows of the first projection (gate and up stacked where gated), F."""

TUNED_TOO: dict[str, tuple[int, int, int]] = {"geglu-1024": (1024, 5632, 2816)}
"""A layer of benchmarks/ffn.py that is no model's: swept with the others, left out of their geometric mean."""

TOKENS = (4096, 16384)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One GEMM and who runs it."""

    model: str
    role: str
    """fw1: Z = X W1^T, also dH. fw2: Y = H W2^T, also dX (same dims when not gated). dW1, dW2: weight gradients."""
    m: int
    n: int
    k: int
    gated: bool = False

    @property
    def flops(self) -> int:
        """Dense-equivalent: 2 m n k."""
        return 2 * self.m * self.n * self.k

    @property
    def gradient(self) -> bool:
        """Weight gradients contract over tokens, with row-major operands on both sides."""
        return self.role.startswith("dW")


def shapes(
    models: tuple[str, ...] = (), tokens: tuple[int, ...] = TOKENS, ffns: dict[str, tuple[int, int, int]] = FFNS
) -> list[Shape]:
    """Every GEMM of the models whose name contains one of `models` (all if none)."""
    result = []
    for model, (d, up, f) in ffns.items():
        if models and not any(part in model for part in models):
            continue
        for t in tokens:
            gated = up != f
            result += [
                Shape(model, "fw1", up, t, d, gated),
                Shape(model, "fw2", d, t, f, gated),
                Shape(model, "dW1", up, d, t, gated),
                Shape(model, "dW2", d, f, t, gated),
            ]
            if gated:
                result.append(Shape(model, "dH", f, t, d, gated))
                result.append(Shape(model, "dX", d, t, up, gated))
    return result
