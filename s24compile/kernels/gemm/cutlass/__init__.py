"""2:4-sparse GEMM for Hopper on CUTLASS's sparse wgmma collectives, built on demand and called through plain C.

`provider` is what the op `s24::mm` is given, `scaled` what `s24::scaled_mm` is; `instantiations` says what can be
built, `build` builds and caches it, `loader` opens it, `launch` runs it, `tuned` chooses tile, cluster and raster for a
shape. Nothing here is imported before a CUDA tensor or an explicit `s24 build` asks for it.
"""

from s24compile.kernels.gemm.cutlass import provider, scaled

PROVIDERS = provider.PROVIDERS | scaled.PROVIDERS
"""Op name to provider: what `kernels.providers.find` reads."""

__all__ = ["PROVIDERS"]
