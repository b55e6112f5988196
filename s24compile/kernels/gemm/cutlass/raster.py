"""Which way the blocks walk over D where no measurement says: a model of waves and of bytes read from device memory.

All blocks of a wave run side by side, clusters numbered along the raster direction inside bands `swizzle` clusters
wide. A wave so covers a rectangle of D; the closer to a square, the fewer bytes of A and B it reads. The operand along
the band is read once; the other one once per band, unless it stays in L2. CUTLASS rounds the tiles up to multiples of
swizzle x cluster in both directions and computes the padding too, so wide bands cost waves.

Checked against the GEMM kernels inside compiled FFN steps (H100, 2026-11-21, raster n, swizzle 1, 16384 tokens):
4096-11008, four forward and dX GEMMs 11.7 ms (measured 12.2), two dW 4.3 ms (4.2). Small shapes it only ranks: fw2 of
768-3072 107 us (130, a wait for the kernel before included), dW 134 us (107: with 72 SMs busy the clock is higher),
and it knows nothing of the epilogue, which short K exposes (fw1 of 768-3072 along M: 75 us, measured 94).
"""

from __future__ import annotations

import functools
import math
from typing import Literal

from s24compile.kernels.gemm.cutlass.instantiations import Schedule

Raster = Literal["m", "n"]

BYTES_PER_US = 3.0e6
"""Device memory of an H100 80GB, measured with a copy."""
FLOPS_PER_US = 1.06e9
"""Dense-equivalent rate of full waves of 128x256 tiles of 16-bit operands, measured at 8192^3 and on dW."""
NARROW_FLOPS_PER_US = 1.82e9
"""The same of 8-bit operands, measured at 8192^3 with a plain builder kernel."""
L2_BYTES = 20e6
"""What stays in the 50 MB of L2 while outputs stream through it."""
SMS = 132
A_BYTES, B_BYTES = 1.125, 2.0
"""Per logical element: half of the values and two bits for each of them; a dense 16-bit element."""
NARROW_A_BYTES, NARROW_B_BYTES = 0.625, 1.0


@functools.lru_cache(maxsize=4096)
def choose_raster(m: int, n: int, k: int, schedule: Schedule, narrow: bool = False) -> tuple[Raster, int]:
    """(raster, swizzle) of the least modelled time; then of the fewest bytes, then of the narrowest band."""
    rasters: tuple[Raster, ...] = ("m", "n")
    options = [(raster, swizzle) for swizzle in (1, 2, 4, 8) for raster in rasters]
    return min(options, key=lambda option: _rounded(estimate_us(m, n, k, schedule, option[0], option[1], narrow)))


def _rounded(estimate: tuple[float, float]) -> tuple[float, float]:
    # Differences below a per cent are not the model's to decide.
    return round(math.log(estimate[0]), 2), round(math.log(estimate[1]), 2)


def estimate_us(
    m: int, n: int, k: int, schedule: Schedule, raster: Raster, swizzle: int, narrow: bool = False
) -> tuple[float, float]:
    """(modelled microseconds, those of the memory traffic alone) of D [m, n] with 2-byte elements.

    narrow: the operands have 8 bits instead of 16.
    """
    rate = NARROW_FLOPS_PER_US if narrow else FLOPS_PER_US
    a_bytes, b_bytes = (NARROW_A_BYTES, NARROW_B_BYTES) if narrow else (A_BYTES, B_BYTES)
    (tile_m, tile_n), (cluster_m, cluster_n) = schedule.tile, schedule.cluster
    swizzle = _effective_swizzle(_ceil(m, tile_m), _ceil(n, tile_n), swizzle)
    rows = _ceil(_ceil(m, tile_m), swizzle * cluster_m) * swizzle
    columns = _ceil(_ceil(n, tile_n), swizzle * cluster_n) * swizzle
    at_once = SMS // (cluster_m * cluster_n)
    tile_flops = 2 * tile_m * tile_n * k * cluster_m * cluster_n * at_once
    waves: float = _ceil(rows * columns, at_once)
    if schedule.stream_k:
        waves = rows * columns / at_once
    arithmetic = waves * tile_flops / rate

    a, b = m * k * a_bytes, n * k * b_bytes
    (along, major), (across, minor) = ((a, rows), (b, columns)) if raster == "m" else ((b, columns), (a, rows))
    bands = minor // swizzle
    passes = 1.0 if along <= L2_BYTES else max(1.0, bands / max(1.0, at_once / (swizzle * major)))
    memory = (along * passes + across + 2 * m * n) / BYTES_PER_US
    return max(arithmetic, memory), memory


def _effective_swizzle(tiles_m: int, tiles_n: int, asked: int) -> int:
    """What CUTLASS makes of max_swizzle_size: no wider than the smaller direction bears."""
    smaller = min(tiles_m, tiles_n)
    return max(width for width, least in ((8, 6), (4, 3), (2, 2), (1, 1)) if asked >= width and smaller >= least)


def _ceil(size: int, by: int) -> int:
    return -(-size // by)
