"""What can be built from sparse_gemm.cuh: one `Kernel` is one row, one .cu file and one shared object.

A kernel is a `Signature` (what is computed: types, layouts, epilogue) times a `Schedule` (how: tile, cluster, warp
roles, tile scheduler). D[m, n] = S[m, k] B[k, n]; the names below are CUTLASS's.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args

from s24compile.kernels.activations import ACTIVATIONS

ELEMENTS = {
    "bf16": "cutlass::bfloat16_t", "fp16": "cutlass::half_t", "fp32": "float",
    "e4m3": "cutlass::float_e4m3_t", "e5m2": "cutlass::float_e5m2_t",
}  # fmt: skip
NARROW = ("e4m3", "e5m2")
"""8-bit elements: K-major operands only, one factor a tensor, sums multiplied by both before the epilogue."""
FUNCTIONS = {row.name: row.cuda for row in ACTIVATIONS.values() if row.cuda}
"""Activation to the type of activations.cuh."""

Element = Literal["bf16", "fp16", "e4m3", "e5m2"]
Output = Literal["bf16", "fp16", "fp32"]
Epilogue = Literal["plain", "bias", "act", "dact", "dact_sum", "add", "glu", "dglu"]


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a kernel computes."""

    dtype: Element
    """Of S's values, and of B where `other` is empty; products accumulate in fp32."""
    a: Literal["k", "m"]
    """Contiguous direction of the packed values: along K ([m, k/2] row-major) or along M."""
    b: Literal["k", "n"]
    """Contiguous direction of B: along K (a row-major X[n, k] seen as X.T) or along N."""
    d: Literal["row", "col"]
    """Row-major D: N contiguous. Column-major: M contiguous, so that D.T is a row-major [n, m]."""
    out: Output
    """Of D; also of Z ("act" writes it, "dact" reads it) and of C ("add")."""
    epilogue: Epilogue = "plain"
    """plain: D = S B. bias: + bias[m]. act: Z = S B + bias[m], D = f(Z). dact: D = (S B) f'(Z). dact_sum:
    the sum of each of its rows, too. add: + beta C.
    glu: Z = S B, D = f(gate) up, S in the "sm90_gated" format. dglu: both halves of dZ from dH = S B and Z."""
    act: str = ""
    """Name in FUNCTIONS, for those five that have one."""
    bias: Literal["", "bf16", "fp16", "fp32"] = ""
    """Type of the bias, for "bias" and "act"; the pointer may be null for "act"."""
    other: Literal["", "e4m3", "e5m2"] = ""
    """Type of B, where it is not S's."""
    sums: Literal["", "exact"] = ""
    """8-bit operands only. "": wgmma's own sums of them, which drop what is below some 2^-13 of the largest. "exact":
    these over 128 k only, added up in fp32 registers: twice the registers, so smaller tiles."""

    @property
    def name(self) -> str:
        """Part of the object's file name."""
        types = f"{self.dtype}x{self.other}" if self.other else self.dtype
        parts = (types, f"a{self.a}", f"b{self.b}", f"d{self.d}", self.out, self.epilogue, self.act, self.bias)
        return "_".join(part for part in (*parts, self.sums) if part)

    @property
    def narrow(self) -> bool:
        """Whether the operands are 8 bits wide."""
        return self.dtype in NARROW

    @property
    def type(self) -> str:
        """The C++ epilogue type. Those of 8-bit products also record the amax of H or dZ, to quantise it by."""
        out, layout = ELEMENTS[self.out], _LAYOUT_D[self.d]
        bias = ELEMENTS[self.bias] if self.bias else out
        if self.narrow and self.epilogue in _OBSERVED:
            return {
                "act": f"s24::ActAmax<s24::{self.act}, {out}, {layout}, {bias}>",
                "dact": f"s24::DActAmax<s24::d{self.act}, {out}, {layout}>",
                "dact_sum": f"s24::DActSum<s24::d{self.act}, {out}, {layout}, true>",
                "glu": f"s24::Glu<s24::{FUNCTIONS.get(self.act)}, {out}, true>",
                "dglu": f"s24::DGlu<s24::{FUNCTIONS.get(self.act)}, {out}, {layout}, true>",
            }[self.epilogue]
        return {
            "plain": f"s24::Plain<{out}>",
            "add": f"s24::Add<{out}>",
            "bias": f"s24::Bias<{out}, {bias}>",
            "act": f"s24::Act<s24::{self.act}, {out}, {layout}, {bias}>",
            "dact": f"s24::DAct<s24::d{self.act}, {out}, {layout}>",
            "dact_sum": f"s24::DActSum<s24::d{self.act}, {out}, {layout}>",
            "glu": f"s24::Glu<s24::{FUNCTIONS.get(self.act)}, {out}>",
            "dglu": f"s24::DGlu<s24::{FUNCTIONS.get(self.act)}, {out}, {layout}>",
        }[self.epilogue]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a kernel runs. K tiles are always the metadata format's K atom: 64, or 128 of 8-bit operands."""

    tile: tuple[int, int] = (128, 256)
    """Rows (M) and columns (N) of D per thread block."""
    cluster: tuple[int, int] = (2, 1)
    """Blocks along M (they share B's tile by multicast) and along N (they share A's)."""
    warps: Literal["cooperative", "pingpong"] = "cooperative"
    """cooperative: both warpgroups work on one tile. pingpong: one computes while the other stores its tile."""
    stream_k: bool = False
    """Splits the K loops of the last wave over all multiprocessors; needs a workspace."""
    deep: bool = False
    """Keeps one k tile's wgmma in flight while the next one is issued (deep_mainloop.cuh)."""

    @property
    def name(self) -> str:
        """Part of the object's file name, and the spelling in the tuned table."""
        warps = {"cooperative": "coop", "pingpong": "ping"}[self.warps]
        flags = ("_sk" if self.stream_k else "") + ("_deep" if self.deep else "")
        return f"{_x(self.tile)}_{_x(self.cluster)}_{warps}{flags}"

    @classmethod
    def parse(cls, name: str) -> Schedule:
        """The inverse of `name`."""
        tile, cluster, warps, *rest = name.split("_")
        roles: Literal["cooperative", "pingpong"] = "pingpong" if warps == "ping" else "cooperative"
        return cls(_pair(tile), _pair(cluster), roles, stream_k="sk" in rest, deep="deep" in rest)


DEFAULT = Schedule(deep=True)
"""The fastest, or within 3% of it, for most shapes (H100, 2026-11-24, benchmarks/results/gemm.json)."""
EXACT = Schedule((128, 128))
"""For sums in fp32 registers, of which a 128 x 256 tile would need all 256 of a thread. CUTLASS's own main loop."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One row of the table."""

    signature: Signature
    schedule: Schedule

    @property
    def name(self) -> str:
        """File name stem of the source and of the object."""
        return f"{self.signature.name}-{self.schedule.name}"

    @classmethod
    def parse(cls, name: str) -> Kernel | None:
        """The inverse of `name`; None for what is no kernel's name."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        dtype, other, *parts, sums, schedule = found.groups(default="")
        return cls(Signature(dtype, *parts, other, sums), Schedule.parse(schedule))  # type: ignore[arg-type, call-arg]

    def source(self) -> str:
        """The .cu file: the template's arguments, spelled out."""
        s, how = self.signature, self.schedule
        cooperative = how.warps == "cooperative"
        mainloop = "Cooperative" if cooperative else "Pingpong"
        epilogue = "TmaWarpSpecializedCooperative" if cooperative else "TmaWarpSpecialized"
        scheduler = "StreamKScheduler" if how.stream_k else "PersistentScheduler"
        headers = [(_OBSERVED if s.narrow else _HEADERS).get(s.epilogue, "sparse_gemm.cuh")]
        headers += ["scaled_mainloop.cuh"] * s.narrow
        kind = "AsBuilt" if not how.deep else "Deep" if s.narrow else "DeepMainloop"
        fast = s.narrow and not s.sums
        return _TEMPLATE.format(
            # Programmatic dependent launch; CUTLASS 4.2's stream-K scheduler does not compile with it.
            define="" if how.stream_k else "#define CUTLASS_ENABLE_GDC_FOR_SM90 1\n",
            headers="\n".join(f'#include "{header}"' for header in headers),
            element=ELEMENTS[s.dtype],
            element_b=ELEMENTS[s.other or s.dtype],
            layout_a=_LAYOUT_A[s.a],
            layout_b=_LAYOUT_B[s.b],
            element_d=ELEMENTS[s.out],
            layout_d=_LAYOUT_D[s.d],
            epilogue=s.type,
            tile=f"_{how.tile[0]}, _{how.tile[1]}, {'_128' if s.narrow else '_64'}",
            cluster=f"_{how.cluster[0]}, _{how.cluster[1]}, _1",
            mainloop_schedule=f"cutlass::gemm::KernelTmaWarpSpecialized{mainloop}{'FP8FastAccum' * fast}",
            mainloop=f"s24::{'Scaled' * s.narrow}{kind}",
            epilogue_schedule=f"cutlass::epilogue::{epilogue}",
            scheduler=f"cutlass::gemm::{scheduler}",
        )


_NAME = re.compile(
    rf"({'|'.join(get_args(Element))})(?:x({'|'.join(NARROW)}))?_a([km])_b([kn])_d(row|col)_(bf16|fp16|fp32)"
    rf"_({'|'.join(get_args(Epilogue))})(?:_({'|'.join(FUNCTIONS)}))?(?:_(bf16|fp16|fp32))?(?:_(exact))?"
    r"-(\d+x\d+_\d+x\d+_(?:coop|ping)(?:_sk)?(?:_deep)?)"
)
_HEADERS = {
    "act": "activation_epilogues.cuh",
    "dact": "activation_epilogues.cuh",
    "dact_sum": "bias_gradient_epilogue.cuh",
    "glu": "gated_epilogues.cuh",
    "dglu": "gated_epilogues.cuh",
}
_OBSERVED = _HEADERS | {"act": "observed_epilogues.cuh", "dact": "observed_epilogues.cuh"}
"""Epilogues that record an amax where the operands are 8 bits wide."""
_LAYOUT_A = {"k": "s24::Row", "m": "s24::Col"}
_LAYOUT_B = {"k": "s24::Col", "n": "s24::Row"}
_LAYOUT_D = {"row": "s24::Row", "col": "s24::Col"}

_TEMPLATE = """\
{define}{headers}

using namespace cute;
using Gemm = s24::Gemm<{element}, {layout_a}, {element_b}, {layout_b}, {element_d}, {layout_d}, {epilogue},
                       Shape<{tile}>, Shape<{cluster}>, {mainloop_schedule}, {mainloop}, {epilogue_schedule},
                       {scheduler}>;

S24_EXPORT(Gemm)
"""


def _x(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _pair(text: str) -> tuple[int, int]:
    first, second = text.split("x")
    return int(first), int(second)
