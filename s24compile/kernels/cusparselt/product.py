"""The library's product, through torch.

torch makes its plan anew in every call, some 0.4 ms of CPU on an H100 machine; which of its algorithms is fastest is
asked of the library once per shape and kept.

Legend: A [m, k] sparse, B [k, n] dense, C [m, n].

* B is row-major or column-major without gaps; C is row-major, or column-major by `transpose_result`: neither costs a
  copy. The bias is one value per row of C.
* fp16 with a column-major C always runs the library's default: some of the algorithms that its search would try there
  end with an illegal instruction (0.8.0 on an H100), which costs the process its GPU.
* C is of B's dtype (torch takes `out_dtype` for 8 bits only). Where fp32 is asked for, C is widened, which rounds
  weight gradients as torch.autocast does.
* m and k must be multiples of 16, n of 8 (torch.sparse's own constraints). What does not fit is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from s24compile.kernels.packed import Packed24
from s24compile.kernels.padding import bias_vector, dense_operand, empty_result, result, round_up
from s24compile.kernels.target import Target
from s24compile.torch_internals.products import cslt_mm, cslt_search

log = logging.getLogger(__name__)

NAME = "cusparselt"
"""Of the providers, and of the format."""
SPARSE, COLUMNS = 16, 8
"""What m and k, and what n must be multiples of."""
DEFAULT = 0
"""The library's own choice of an algorithm."""

_Key = tuple[object, ...]
_fastest: dict[_Key, int] = {}


def supported(target: Target) -> str | None:
    """On the machine itself torch must have been built with the library."""
    if torch.cuda.is_available() and not torch.backends.cusparselt.is_available():
        return "this build of torch has no cuSPARSELt"
    return None


def multiply(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """C = A B + bias, as `s24::mm` returns it."""
    rows, cols = a.shape
    n = b.shape[1]
    if min(rows, cols, n) == 0:
        return empty_result(b, bias, rows, out_layout, out_dtype)
    m = round_up(rows, SPARSE)
    b = dense_operand(b, round_up(cols, SPARSE), round_up(n, COLUMNS))
    # torch reads m from the first size and nothing else of the shape: the buffer may be of fewer rows, before padding.
    compressed, added, turned = a.values.as_strided((m, 1), (1, 1)), bias_vector(bias, m, b.dtype), out_layout == "col"

    def run(algorithm: int) -> Tensor:
        c = cslt_mm(compressed, b, bias=added, transpose_result=turned, alg_id=algorithm)
        return c.t() if turned else c

    def search() -> int:
        if turned and b.dtype == torch.float16:
            return DEFAULT
        return cslt_search(compressed, b, bias=added, transpose_result=turned)

    # A step whose token count varies must not search at each of them: one search for all n up to a power of two.
    key = (m, b.shape[0], (b.shape[1] - 1).bit_length(), b.dtype, b.is_contiguous(), turned, bias is None, b.device)
    return result(_run_fastest(run, search, key), rows, n, out_layout, out_dtype)


def _run_fastest(run: Callable[[int], Tensor], search: Callable[[], int], key: _Key) -> Tensor:
    """Runs the fastest algorithm known for `key`; finds it first, unless a CUDA graph is being captured.

    Under torch.use_deterministic_algorithms the default runs: a search may end otherwise in the next process.
    """
    if torch.are_deterministic_algorithms_enabled():
        return run(DEFAULT)
    algorithm = _fastest.get(key)
    if algorithm is None:
        if torch.cuda.is_current_stream_capturing():
            return run(DEFAULT)
        algorithm = _fastest[key] = search()
        log.debug("cuSPARSELt's algorithm %d is the fastest for %s", algorithm, key)
    try:
        return run(algorithm)
    except RuntimeError:
        if algorithm == DEFAULT:
            raise
        _fastest[key] = DEFAULT  # it took another n of these, and not this one
        return run(DEFAULT)
