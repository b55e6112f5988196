"""NVIDIA's 2:4 library, through torch: what the providers "cusparselt" of several ops share.

`product` multiplies, `compress` packs. A peer to measure against, and the stand-in where CUTLASS's kernels cannot be
built (`gemm/availability.py`). Its format is its own (`format.OpaqueFormat`).
"""
