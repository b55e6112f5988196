"""Builds, in parallel, the CUTLASS kernels that `pytest` asks for on a GPU, and those of the layers of ffn.py.

    python -m tests.kernels.prebuild            before `pytest`, which would build them one after the other
    python -m tests.kernels.prebuild --list

What the samples of the ops ask for is found by asking: they run on a CPU against a recorder.
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from benchmarks.ffn import LAYERS, TOKENS
from benchmarks.gemm_parts.check import SIZES
from s24compile.kernels import providers
from s24compile.kernels.gemm.cutlass import build, tuned
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, Signature, training_set
from s24compile.kernels.samples import samples
from tests.kernels.recorder import recording
from tests.kernels.test_cutlass_gpu import KERNELS

OPS = ("mm", "mm_act", "mm_dact", "mm_dact_sum", "mm_add", "mm_glu", "mm_dglu")


def asked_by_samples() -> list[Kernel]:
    """The samples of every GEMM op, in both dtypes."""
    with recording() as calls:
        for op in OPS:
            provider = providers.find(op, "cutlass")
            assert provider is not None
            for dtype in (torch.bfloat16, torch.float16):
                for sample in samples(op, "cpu", dtype):
                    if provider.supports(*sample.args) is None:
                        provider.run(*sample.args)
    return [call.kernel for call in calls]


def asked_by_checks() -> list[Kernel]:
    """test_cutlass_gpu.py: its kernels, with B in either layout, and what "add" chooses, which takes no choice."""
    either = [
        Kernel(dataclasses.replace(kernel.signature, b=b), kernel.schedule) for kernel in KERNELS for b in ("k", "n")
    ]
    adding = {kernel.signature for kernel in either if kernel.signature.epilogue == "add"}
    return either + [Kernel(add, tuned.choose(add, *size).schedule) for add in adding for size in SIZES]


def asked_by_layouts() -> list[Kernel]:
    """test_gemm.py: products without an epilogue in every layout, at its sizes, all of them small."""
    plain = [
        Signature(dtype, a, b, d, out)
        for dtype in ("bf16", "fp16")
        for a in ("k", "m")
        for b in ("k", "n")
        for d in ("row", "col")
        for out in (dtype, "fp32")
    ]
    return [Kernel(signature, tuned.choose(signature, 72, 24, 136).schedule) for signature in plain]


def asked_by_layers() -> list[Kernel]:
    """The training set, with the schedules that the tuned table has for the layers of ffn.py."""
    found = []
    for kind, width, hidden, _ in LAYERS.values():
        gated_layer = kind != "gelu"
        up = hidden * (2 if gated_layer else 1)
        for signature in [kernel.signature for kernel in training_set("bf16")]:
            gated_kernel = signature.epilogue in ("glu", "dglu")
            if signature.act and gated_kernel != gated_layer:
                continue
            for m, n, k in _shapes(signature, width, up, hidden):
                found.append(Kernel(signature, tuned.choose(signature, m, n, k).schedule))
    return found


def _shapes(signature: Signature, width: int, up: int, hidden: int) -> list[tuple[int, int, int]]:
    """(m, n, k) of the GEMMs of a layer that a signature may serve."""
    if signature.b == "n":
        return [(up, width, TOKENS), (width, hidden, TOKENS)]
    if signature.act:
        return [(up if signature.epilogue == "glu" else hidden, TOKENS, width)]
    return [(up, TOKENS, width), (width, TOKENS, hidden), (width, TOKENS, up)]


def wanted() -> list[Kernel]:
    """All of them, once each."""
    sets = training_set("bf16") + training_set("fp16")
    asked = asked_by_layers() + asked_by_samples() + asked_by_checks() + asked_by_layouts()
    return list(dict.fromkeys(sets + asked))


def main() -> None:
    """Builds or lists."""
    kernels = wanted()
    if "--list" in sys.argv[1:]:
        print("\n".join(kernel.name for kernel in kernels))
        return
    build.build_all(kernels, lambda done, total, name: print(f"{done}/{total} {name}", flush=True))


if __name__ == "__main__":
    main()
