"""What is known of each architecture, one row each: its 2:4 format, its kernels, their flags and costs. A leaf.

A new architecture is a row here and kernels that it names. What needs a fact of one asks the row, never a number of
compute capability: a GPU that no row knows then runs the reference, and says so.
"""

from __future__ import annotations

import dataclasses
import functools

from s24compile.kernels.costs import H100, Costs

PROVIDERS = ("cutlass", "triton", "cublas", "torch", "cusparselt", "reference")
"""Names of all providers of kernels. "torch" is torch's own 2:4 GEMM, for compute capability 8.x, "cublas" are torch's
dense products of eight-bit floats."""

Capability = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Arch:
    """One row."""

    name: str
    """As a sentence has it."""
    major: int | None
    """Of the compute capabilities that the row is about, as `minor`; None: it is no CUDA architecture."""
    minor: int | None
    """None: every one."""
    format: str
    """Name of the 2:4 format that its sparse tensor cores read."""
    providers: tuple[str, ...]
    """Whose kernels run here, best first. The reference is the last, and takes every call."""
    gated_format: str = ""
    """Format of a weight whose GEMM computes a GLU in its epilogue; empty: there is no such kernel."""
    stand_in: str = ""
    """The provider that multiplies, in a format of its name, where the first one of the row has no kernel and cannot
    build one; empty: there is none."""
    alignment_bytes: int | None = 32
    """What the rows of a dense weight, and of its transpose, are multiples of: the packed values of a row are half of
    it and begin on 16 bytes. None: whole 4x4 blocks will do."""
    fp8: bool = False
    """Whether it converts to 8-bit floats and its tensor cores multiply them."""
    nvcc_flags: tuple[str, ...] = ()
    """What kernels are built for."""
    costs: Costs | None = None
    """None: nothing was measured, and 2:4 is not known to pay."""

    @property
    def capabilities(self) -> str:
        """ "sm_90", "sm_8x": what the row covers."""
        return f"sm_{self.major}{'x' if self.minor is None else self.minor}"


CPU = Arch("CPU", None, None, format="sm90", providers=("reference",), fp8=True, alignment_bytes=None)
"""What the reference computes on a CPU is what Hopper does, so that lowering for it can be tested here."""

HOPPER = Arch(
    "Hopper", 9, 0,
    format="sm90",
    providers=("cutlass", "triton", "cublas", "cusparselt", "reference"),
    gated_format="sm90_gated",
    stand_in="cusparselt",
    fp8=True,
    nvcc_flags=("-gencode=arch=compute_90a,code=sm_90a",),
    costs=H100,
)  # fmt: skip

AMPERE = Arch("Ampere", 8, None, format="sm80", providers=("triton", "torch", "cusparselt", "reference"))
ADA = dataclasses.replace(AMPERE, name="Ada", minor=9, fp8=True)

KNOWN = (HOPPER, ADA, AMPERE)
"""CUDA architectures that have kernels; the first that covers a compute capability is its row."""

UNKNOWN = Arch("unknown", None, None, format="plain", providers=("reference",), alignment_bytes=None)
"""Every other GPU."""


@functools.cache
def arch_of(capability: Capability | None) -> Arch:
    """The row of a compute capability; None is a CPU's, or of a device that is no CUDA GPU."""
    if capability is None:
        return CPU
    major, minor = capability
    return next((row for row in KNOWN if row.major == major and row.minor in (None, minor)), UNKNOWN)


def where(provider: str) -> str:
    """The architectures that a provider has kernels for, in words."""
    *names, last = (f"{row.name} ({row.capabilities})" for row in KNOWN if provider in row.providers)
    return f"{', '.join(names)} and {last}" if names else last
