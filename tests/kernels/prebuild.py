"""Builds, in parallel, the CUTLASS kernels that `pytest` asks for on a GPU, and those of the layers of ffn.py.

    python -m tests.kernels.prebuild            before `pytest`, which would build them one after the other
    python -m tests.kernels.prebuild --list
    python -m tests.kernels.prebuild --budget-s 540     again, until it exits with 0
    python -m tests.kernels.prebuild --fp8-sweep        only what `benchmarks/gemm.py --fp8 --tune` compares

What the samples of the ops ask for is found by asking: they run on a CPU against a recorder.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time

import torch

from benchmarks.ffn import LAYERS, TOKENS
from benchmarks.gemm_parts import narrow
from benchmarks.gemm_parts.check import SIZES
from s24compile.kernels import providers
from s24compile.kernels.gemm.cutlass import build, objects, tuned
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, Signature
from s24compile.kernels.gemm.cutlass.training_sets import narrow_training_set, training_set
from s24compile.kernels.samples import samples
from tests.kernels.recorder import recording
from tests.kernels.test_cutlass_gpu import KERNELS, NARROW_KERNELS

SECONDS_PER_BUILD = 120
"""One nvcc run takes 85 to 110 s."""
OPS = [op for op, folder in providers.FOLDER_OF.items() if folder == "gemm" and providers.find(op, "cutlass")]


FURTHER = (
    "bf16_ak_bk_dcol_bf16_bias_fp32-128x192_2x1_coop_deep",
    "bf16_ak_bk_dcol_fp32_add-128x192_2x1_coop_deep",
    "bf16_ak_bk_drow_bf16_bias_bf16-128x192_2x1_coop_deep",
    "bf16_ak_bk_drow_bf16_plain-128x256_2x1_coop_sk_deep",
    "bf16_ak_bn_dcol_bf16_plain-128x256_1x1_coop_deep",
    "bf16_ak_bn_drow_bf16_plain-128x256_1x1_coop_deep",
    "bf16_ak_bn_drow_fp32_plain-128x192_2x1_ping",
    "bf16_ak_bn_drow_fp32_plain-128x256_1x1_coop_deep",
    "e4m3_ak_bk_dcol_bf16_glu_relu-128x256_2x1_coop_deep",
    "e4m3_ak_bk_dcol_fp32_bias_fp32-128x256_2x1_coop_deep",
    "e4m3_ak_bk_dcol_fp32_plain-128x256_2x1_coop_deep",
    "e4m3_ak_bk_drow_fp32_plain-128x256_2x1_coop_deep",
    "e4m3xe5m2_ak_bk_dcol_bf16_act_gelu_fp32-128x256_2x1_coop_deep",
    "e4m3xe5m2_ak_bk_dcol_bf16_bias_fp32-128x256_2x1_coop_deep",
    "e4m3xe5m2_ak_bk_dcol_fp32_bias_fp32-128x256_2x1_coop_deep",
    "e4m3xe5m2_ak_bk_drow_fp32_plain-128x256_2x1_coop_deep",
    "e4m3xe5m2_ak_bk_drow_fp32_plain_exact-128x128_2x1_coop",
    "e5m2xe4m3_ak_bk_dcol_bf16_bias_fp32-128x256_2x1_coop_deep",
    "e5m2xe4m3_ak_bk_dcol_fp32_bias_fp32-128x256_2x1_coop_deep",
    "fp16_ak_bk_dcol_fp16_bias_fp32-128x192_2x1_coop_deep",
    "fp16_ak_bk_drow_fp16_bias_fp16-128x192_2x1_coop_deep",
    "fp16_ak_bn_drow_fp32_plain-128x256_1x1_coop_deep",
)
"""What other tests ask for: `kernels_built_by_tests` of gpu_suite.json."""


def asked_by_samples() -> list[Kernel]:
    """The samples of every GEMM op, in both dtypes."""
    with recording() as calls:
        for op in OPS:
            run = providers.kernel(op, "cutlass")
            for dtype in (torch.bfloat16, torch.float16):
                for sample in samples(op, "cpu", dtype):
                    if providers.refusal(op, "cutlass", *sample.args) is None:
                        run(*sample.args)
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
    sets = training_set("bf16") + training_set("fp16") + narrow_training_set() + NARROW_KERNELS
    further = [Kernel.parse(name) for name in FURTHER]
    assert None not in further, "a kernel of FURTHER is called otherwise now"
    asked = (
        [kernel for kernel in further if kernel is not None]
        + asked_by_layers()
        + asked_by_samples()
        + asked_by_checks()
        + asked_by_layouts()
    )
    return list(dict.fromkeys(sets + asked))


def build_within(kernels: list[Kernel], seconds: float) -> int:
    """Builds what is not built yet, as many at a time as cores and memory allow; returns how many are left.

    Args:
        seconds: no build is started that would not be done by then.
    """
    waiting = [kernel for kernel in kernels if objects.object_path(kernel) is None]
    at_a_time, done, deadline = build.parallel_builds(), len(kernels) - len(waiting), time.monotonic() + seconds
    print(f"{done} of {len(kernels)} kernels are built, {at_a_time} builds at a time", flush=True)
    while waiting and time.monotonic() + SECONDS_PER_BUILD <= deadline:
        now, waiting = waiting[:at_a_time], waiting[at_a_time:]
        build.build_all(now)
        done += len(now)
        print(f"{done}/{len(kernels)}", flush=True)
    return len(waiting)


def main() -> int:
    """Builds or lists; 3 if the time ended before all were built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the kernels, then stop")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="start no build that ends after these seconds")
    parser.add_argument("--fp8-sweep", action="store_true", help="what benchmarks/gemm.py --fp8 --tune compares")
    flags = parser.parse_args()
    kernels = narrow.to_sweep() if flags.fp8_sweep else wanted()
    if flags.list:
        print("\n".join(kernel.name for kernel in kernels))
        return 0
    left = build_within(kernels, flags.budget_s)
    if left:
        print(f"the time is over, {left} kernels are left: run this again")
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
