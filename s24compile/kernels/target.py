"""What a graph is compiled for: the device, its compute capability, and the providers of kernels at hand.

A Target can be made by hand (`Target("cuda", (9, 0), ...)`), so lowering for Hopper is tested on a machine without one.
To detect a GPU it asks `gemm/availability.py` what stands in for CUTLASS.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging

import torch

from s24compile.errors import OptionError
from s24compile.kernels.arch import KNOWN, UNKNOWN, Arch, Capability, arch_of

log = logging.getLogger("s24compile")


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of machine.

    `capability` is the CUDA compute capability, None on a CPU. `providers` are those whose kernels may be chosen;
    whether one takes a given op and shape is the provider's own answer.
    """

    device_type: str = "cpu"
    capability: Capability | None = None
    providers: tuple[str, ...] = ("reference",)

    def __str__(self) -> str:
        return self.device_type if self.capability is None else f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def arch(self) -> Arch:
        """What is known of it: a row of `arch.py`."""
        return arch_of(self.capability)

    @property
    def format(self) -> str:
        """Name of the 2:4 format that compiled graphs pack: the architecture's own, unless cuSPARSELt has to stand in.

        It does on Hopper where its kernels are there and CUTLASS's are not, see `gemm/availability.py`.
        """
        best, stand_in = self.arch.providers[0], self.arch.stand_in
        return stand_in if stand_in in self.providers and best not in self.providers else self.arch.format

    @property
    def unknown(self) -> str | None:
        """The sentence for a GPU that no row of `arch.py` knows; None for any other machine."""
        if self.arch is not UNKNOWN:
            return None
        known = ", ".join(f"{row.name} ({row.capabilities})" for row in KNOWN)
        return f"there are no 2:4 kernels for {self}, only for {known}: the reference runs there, slower than dense"

    def alignment(self, dtype: torch.dtype) -> int:
        """What both dimensions of a weight must be multiples of, in elements: `Arch.alignment_bytes`."""
        size = self.arch.alignment_bytes
        return 4 if size is None else size // dtype.itemsize

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
            capability = int(name[:-1]), int(name[-1])
            return cls("cuda", capability, arch_of(capability).providers)
        raise OptionError(name="target", value=given, accepted='it must be a Target, "cpu", or an arch such as "sm_90"')


@functools.cache
def _cuda_target(index: int) -> Target:
    from s24compile.kernels.gemm.availability import stands_in  # only here: it loads the CUTLASS builder

    capability = torch.cuda.get_device_capability(index)
    arch = arch_of(capability)
    absent = {"triton"} if importlib.util.find_spec("triton") is None else set()
    if stands_in(arch):
        absent.add(arch.providers[0])
    target = Target("cuda", capability, tuple(name for name in arch.providers if name not in absent))
    if target.unknown is not None:
        log.warning("cuda:%d: %s", index, target.unknown)
    return target
