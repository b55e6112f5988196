"""When does 2:4 pay? Layers measured on a GPU (`kernels.costs`), and a roofline that carries them to other sizes.

Legend: T tokens, D model width, F hidden width.

Two things can make 2:4 slower than dense. Few tokens: packing and pruning are passes over memory that few operations
pay for. And little work per launch: a 2:4 layer costs the host more than a dense one, and a GPU that waits for its host
gains nothing from faster kernels.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from s24compile.graphs.layer import Layer
from s24compile.kernels.costs import H100, Costs, Measured
from s24compile.kernels.target import Target

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Inductor's modes that replay CUDA graphs, where launches cost nothing."""

FORCE = "min_speedup=0 forces it"
"""Ends every sentence of `refuse_slow`."""


def refuse_slow(layer: Layer, target: Target, min_speedup: float, mode: str | None = None) -> str | None:
    """A sentence if `layer` is not expected to reach `min_speedup` on `target`; None if it is, and always on a CPU."""
    if target.capability is None or min_speedup == 0:
        return None
    if target.unknown is not None:
        return f"{target.unknown}; {FORCE}"
    costs = target.arch.costs
    if costs is None:
        return f"no 2:4 layer has been measured on {target}, and none is known to pay there; {FORCE}"
    if layer.dtype not in (torch.bfloat16, torch.float16):
        name = str(layer.dtype).removeprefix("torch.")
        return f"it computes in {name}, and the 2:4 kernels are for bf16 and fp16 (use autocast); {FORCE}"
    alike = [row for row in costs.layers if row.state == layer.state]
    nearest = min(alike or costs.layers, key=lambda row: _distance(row, layer))
    dense_us, sparse_us = estimate_us(layer, nearest, costs)
    source = f"from D {nearest.width}, F {nearest.hidden}, {nearest.tokens} tokens measured on {costs.gpu}"
    if not alike:
        source += ", with 2:4 weights instead of a 2:4 hidden state"
    if sparse_us < costs.host_bound_us and mode not in GRAPH_MODES:
        return (
            f"its 2:4 kernels would take {sparse_us:.0f} us a step ({source}), and below {costs.host_bound_us:g} us "
            "the GPU waits for the host, which launches dense layers faster; CUDA graphs (mode='reduce-overhead') "
            f"help, and {FORCE}"
        )
    if dense_us / sparse_us >= min_speedup:
        return None
    return (
        f"2:4 is expected at {dense_us / sparse_us:.2f} times dense speed ({source}); min_speedup={min_speedup:g} asks "
        f"for more, and {FORCE}"
    )


def mvue_from(target: Target) -> int:
    """Input features from which pruning a gradient pays, `Costs.mvue_from`; about 1700 on an H100.

    Where nothing was measured, what was on one: a graph then trains alike on every machine.
    """
    return (target.arch.costs or H100).mvue_from


def estimate_us(layer: Layer, nearest: Measured, costs: Costs) -> tuple[float, float]:
    """(dense, 2:4) GPU microseconds of a step of `layer`: its roofline, in proportion to the nearest measured layer's.

    Without a token count, that of the measured layer.
    """
    layer = layer if layer.tokens is not None else dataclasses.replace(layer, tokens=nearest.tokens)
    dense, sparse = roofline_us(layer, costs)
    dense_there, sparse_there = roofline_us(layer_of(nearest), costs)
    return nearest.dense_us * dense / dense_there, nearest.sparse_us * sparse / sparse_there


def layer_of(row: Measured) -> Layer:
    """What was measured."""
    return Layer(row.width, row.hidden, row.gated, row.tokens, torch.bfloat16, state=row.state)


def roofline_us(layer: Layer, costs: Costs) -> tuple[float, float]:
    """(dense, 2:4) microseconds by operations, bytes and launches.

    Bytes are those that the GEMMs' own time does not cover. Of a linear: casts of weights and their gradients where it
    is dense; packing both ways, or one way and unpacking, and pruning of gradients where it is 2:4. Of the activation:
    a pass forward and one backward where no epilogue holds it; else Z beside H in one epilogue, and Z read in another.
    """
    assert layer.tokens is not None
    launches = 10 * costs.launch_us
    up = layer.hidden * (2 if layer.gated else 1)
    linears = [
        (layer.width, up, layer.first, layer.dw[0]),
        (layer.hidden, layer.width, layer.last, layer.dw[1]),
    ]
    turned = layer.last and layer.dx == "sparse"
    forward = 2.0 * layer.tokens * (up if layer.first else up + layer.hidden)
    backward = 2.0 * layer.tokens * (up if turned else 2 * up + layer.hidden)
    passes = 2.0 * layer.tokens * (3 * up + 2 * layer.hidden)
    dense = sum(_dense_us(layer.tokens, k, n, costs) for k, n, *_ in linears) + passes / costs.bytes_per_us
    if layer.state:
        return dense + launches, _state_us(layer, layer.tokens, costs) + launches
    sparse = sum(
        _sparse_us(layer.tokens, k, n, layer.dx, dw, costs) if chosen else _dense_us(layer.tokens, k, n, costs)
        for k, n, chosen, dw in linears
    )
    sparse += (forward + backward) / costs.bytes_per_us
    return dense + launches, sparse + launches


def _dense_us(tokens: int, k: int, n: int, costs: Costs) -> float:
    """A linear [n, k] without 2:4, forward and backward."""
    return 6.0 * tokens * k * n / costs.dense_flops_per_us + 12.0 * k * n / costs.bytes_per_us


def _state_us(layer: Layer, tokens: int, costs: Costs) -> float:
    """A layer whose hidden state is 2:4, with the passes that make it and its gradient.

    Bytes an element of [T, F]: 3.125 forward; 4.125 backward, 1.125 more for each estimate, and 3.125 to unpack what an
    exact weight gradient multiplies by. Of the weights: casts, and of exact gradients, too.
    """
    estimates = (layer.first and layer.dw[0] == "mvue") + (layer.dw[1] == "mvue")
    exact = layer.first + 1 - estimates
    gemms_24 = 1 + layer.first + estimates
    elements = float(tokens * layer.hidden)
    rates = gemms_24 / costs.sparse_flops_per_us + (6 - gemms_24) / costs.dense_flops_per_us
    passes = elements * (7.25 + 1.125 * estimates + 3.125 * exact)
    casts = layer.width * layer.hidden * (12.0 + 6.0 * (2 - estimates))
    return 2.0 * elements * layer.width * rates + (passes + casts) / costs.bytes_per_us


def _sparse_us(tokens: int, k: int, n: int, dx: str, dw: str, costs: Costs) -> float:
    """The same of a 2:4 linear."""
    gemms_24 = 1 + (dx != "dense") + (dw == "mvue")
    pruned = 3.125 * tokens * n * ((dx == "mvue") + (dw == "mvue"))
    packed = (6.25 if dx == "sparse" else 7.25) * k * n
    flops = 2.0 * tokens * k * n
    rates = gemms_24 / costs.sparse_flops_per_us + (3 - gemms_24) / costs.dense_flops_per_us
    return flops * rates + (pruned + packed) / costs.bytes_per_us


def _distance(row: Measured, layer: Layer) -> float:
    pairs = [(row.width, layer.width), (row.hidden, layer.hidden)]
    return sum(math.log(a / max(1, b)) ** 2 for a, b in pairs) + 0.1 * (row.gated != layer.gated)
