"""Small calls of every built CUTLASS kernel and of every op's Triton kernels, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python benchmarks/sanitize.py

Each result is checked too. Sizes are ragged on purpose: tiles that end outside the tensors are where accesses go wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gemm import built_kernels
from benchmarks.gemm_parts import narrow
from benchmarks.gemm_parts.check import check_kernel
from benchmarks.gemm_parts.narrow_check import check_narrow
from s24compile.kernels import providers
from s24compile.kernels.samples import samples

NEEDS_GPU = True
SIZES = ((264, 72, 136), (128, 31, 64))


def main() -> int:
    """Returns 1 where a result is wrong; what is accessed out of bounds is the sanitizer's to say."""
    torch.manual_seed(0)
    failed = 0
    checks = [(kernel, check_kernel) for kernel in built_kernels()]
    checks += [(kernel, check_narrow) for kernel in narrow.built_kernels()]
    for kernel, check in checks:
        for size in SIZES:
            failed += sum(not result.passes for result in check(kernel, size))
    calls = 0
    for op in providers.FOLDER_OF:
        for sample in samples(op, "cuda", torch.bfloat16):
            if providers.refusal(op, "triton", *sample.args) is None:
                providers.kernel(op, "triton")(*sample.args)
                calls += 1
    torch.cuda.synchronize()
    print(f"{len(checks)} GEMM kernels, {calls} Triton calls, {failed} wrong")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
