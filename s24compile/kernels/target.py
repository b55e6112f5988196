"""What a graph is compiled for: the device, its compute capability, and the kernel families at hand.

A Target can be made by hand (`Target("cuda", (9, 0), ...)`), so lowering for Hopper is tested on a machine without one.
At import this needs `errors` alone; to detect a GPU it asks `gemm/availability.py` what stands in for CUTLASS.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import torch

from s24compile.errors import OptionError

FAMILIES = ("cutlass", "triton", "torch", "cusparselt", "reference")
"""Kernel families, best first. "torch" is torch's own 2:4 GEMM, for compute capability 8.x."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of machine.

    `arch` is the CUDA compute capability, None on a CPU. `families` are the kernel families that may be chosen;
    whether one takes a given op and shape is the provider's own answer.
    """

    device_type: str = "cpu"
    arch: tuple[int, int] | None = None
    families: tuple[str, ...] = ("reference",)

    def __str__(self) -> str:
        return self.device_type if self.arch is None else f"sm_{self.arch[0]}{self.arch[1]}"

    @property
    def format(self) -> str:
        """Name of the 2:4 format that compiled graphs pack: `native_format`, unless cuSPARSELt has to stand in.

        It does on Hopper where its family is there and CUTLASS's is not, see `gemm/availability.py`.
        """
        stands_in = self.arch == (9, 0) and "cusparselt" in self.families and "cutlass" not in self.families
        return "cusparselt" if stands_in else self.native_format

    @property
    def native_format(self) -> str:
        """Name of the 2:4 format that this machine's sparse tensor cores read (the CPU reference follows Hopper)."""
        return "sm80" if self.arch is not None and self.arch[0] == 8 else "sm90"

    def alignment(self, dtype: torch.dtype) -> int:
        """What both dimensions of a weight must be multiples of, in elements.

        4 on a CPU: one 4x4 block. On a GPU 32 bytes: rows of packed values are half as long as dense ones and must
        start on 16-byte boundaries, for W and for W^T.
        """
        return 4 if self.arch is None else 32 // dtype.itemsize

    @classmethod
    def detect(cls, device: torch.device) -> Target:
        """The machine that `device` is part of."""
        if device.type != "cuda":
            return cls(device.type)
        index = torch.cuda.current_device() if device.index is None else device.index
        return _cuda_target(index)

    @classmethod
    def parse(cls, given: Target | str) -> Target:
        """Makes a Target of itself or of a name: "cpu", "sm_90", "sm_80", "sm_89", ...

        Raises:
            OptionError: any other word.
        """
        if isinstance(given, Target):
            return given
        name = str(given).replace("sm", "").replace("_", "")
        if given == "cpu":
            return cls()
        if name.isdigit() and len(name) in (2, 3):
            return cls("cuda", (int(name[:-1]), int(name[-1])), FAMILIES)
        raise OptionError(name="target", value=given, accepted='it must be a Target, "cpu", or an arch such as "sm_90"')


@functools.cache
def _cuda_target(index: int) -> Target:
    from s24compile.kernels.gemm.availability import cusparselt_stands_in  # only here: it loads the CUTLASS builder

    arch = torch.cuda.get_device_capability(index)
    absent = {"triton"} if importlib.util.find_spec("triton") is None else set()
    if cusparselt_stands_in(arch):
        absent.add("cutlass")
    return Target("cuda", arch, tuple(family for family in FAMILIES if family not in absent))
