"""The kernels that training one model needs, which `s24 build` builds ahead of time."""

from __future__ import annotations

from typing import Literal

from s24compile.kernels.activations import ACTIVATIONS
from s24compile.kernels.gemm.cutlass.instantiations import (
    DEFAULT,
    Epilogue,
    Kernel,
    Output,
    Schedule,
    Signature,
)


def _prebuilt(kind: str) -> list[str]:
    return [row.name for row in ACTIVATIONS.values() if kind in row.prebuilt]


def training_set(dtype: Literal["bf16", "fp16"] = "bf16", schedules: tuple[Schedule, ...] = (DEFAULT,)) -> list[Kernel]:
    """In 16 bits.

    Forward and dX: packed weights K-major times row-major activations, column-major D (its transpose is row-major),
    with and without bias, with GELU in the epilogue (forward and backward, there with and without the bias gradient),
    with GLUs, with a residual, and dX straight in fp32. The same with a packed hidden state and a weight: row-major D.
    dW: packed gradients K-major or M-major times row-major X, row-major D (column-major for Conv1D's transposed
    weights), in the operands' dtype and straight to fp32 master gradients.
    """
    forward = [
        Signature(dtype, "k", "k", "col", dtype),
        Signature(dtype, "k", "k", "col", dtype, "bias", bias=dtype),
        Signature(dtype, "k", "k", "col", dtype, "bias", bias="fp32"),
        Signature(dtype, "k", "k", "col", "fp32"),
        Signature(dtype, "k", "k", "col", dtype, "add"),
        Signature(dtype, "k", "k", "col", "fp32", "add"),
        Signature(dtype, "k", "k", "row", dtype),
    ]
    outputs: tuple[Output, ...] = (dtype, "fp32")
    derivatives: tuple[Epilogue, ...] = ("dact", "dact_sum")
    for act in _prebuilt("plain"):
        forward += [Signature(dtype, "k", "k", "col", dtype, "act", act, bias) for bias in outputs]
        forward += [Signature(dtype, "k", "k", "col", dtype, way, act) for way in derivatives]
    gated: tuple[Epilogue, ...] = ("glu", "dglu")
    forward += [Signature(dtype, "k", "k", "col", dtype, way, act) for act in _prebuilt("gated") for way in gated]
    majors: tuple[Literal["k", "m"], ...] = ("k", "m")
    layouts: tuple[Literal["row", "col"], ...] = ("row", "col")
    gradients = [Signature(dtype, a, "n", d, out) for a in majors for d in layouts for out in outputs]
    return [Kernel(signature, schedule) for schedule in schedules for signature in forward + gradients]


def narrow_training_set(schedules: tuple[Schedule, ...] = (DEFAULT,)) -> list[Kernel]:
    """In 8 bits: weights and activations in e4m3, gradients in e5m2, every operand along K.

    Forward: W by X. dX: W^T by gradients. dW: gradients, pruned, by X^T or H^T. Epilogues and outputs as in 16 bits.
    """
    acts, gated = _prebuilt("plain"), _prebuilt("gated")
    outputs: tuple[Output, ...] = ("bf16", "fp32")
    derivatives: tuple[Epilogue, ...] = ("dact", "dact_sum")
    layouts: tuple[Literal["row", "col"], ...] = ("row", "col")
    forward = [Signature("e4m3", "k", "k", "col", "bf16")]
    forward += [Signature("e4m3", "k", "k", "col", "bf16", "bias", bias=bias) for bias in outputs]
    forward += [Signature("e4m3", "k", "k", "col", out, "add") for out in outputs]
    forward += [Signature("e4m3", "k", "k", "col", "bf16", "act", act, bias) for act in acts for bias in outputs]
    forward += [Signature("e4m3", "k", "k", "col", "bf16", "glu", act) for act in gated]
    back = [Signature("e4m3", "k", "k", "col", out, other="e5m2") for out in outputs]
    back += [Signature("e4m3", "k", "k", "col", "bf16", way, act, other="e5m2") for way in derivatives for act in acts]
    back += [Signature("e4m3", "k", "k", "col", "bf16", "dglu", act, other="e5m2") for act in gated]
    weights = [Signature("e5m2", "k", "k", d, out, other="e4m3") for d in layouts for out in outputs]
    return [Kernel(signature, schedule) for schedule in schedules for signature in forward + back + weights]
