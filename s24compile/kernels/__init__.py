"""One op = one meaning: contracts in `ops/`, kernels in one folder per kind of work, each beside its reference.

Leaves:                `patterns`, `metadata`, `format` (the 2:4 formats), `activations`, `arch` with `costs` (tables),
                       `packed`, `stacks` (what kernels are given), `philox`, `rounding`, `padding`, `words`
Standing on them:      `target` (what is compiled for), `signature`, `providers` (whose kernel runs), `checks` (what
                       people may pass), `samples` (what tests call)
Shared by kernels:     `triton/`, `cusparselt/`
Kernels:               `masks`, `pack`, `mvue`, `gemm`, `glu`, `decay`
"""
