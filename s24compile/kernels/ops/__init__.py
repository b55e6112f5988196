"""The contracts of every op in namespace `s24`: schema, fake, autograd, dispatch. torch only; importing registers.

========================  =====================================================================================
`selection`               transposable_patterns, expand_patterns, transposable_mask, magnitude_patterns,
                          magnitude_mask, soft_threshold, soft_threshold_scale, flip_rate
`packing`                 pack, unpack, pack_both, pack_weight_, pack_weights_
`estimation`              mvue, mvue_pack, mvue_pack_sum
`gemm`                    mm, linear
`epilogues`               mm_act, mm_dact, mm_dact_sum, mm_add, mm_glu, mm_dglu
`activation`              act, act_backward, glu, glu_backward
`decay`                   masked_decay_, masked_decay_patterns_, masked_decay_many_
`watching`                copy_samples_, compare_samples_
`fp8`                     amax, quantise, quantise_pack, glu_backward_amax, glu_backward_quantise_pack,
                          unpack_transposed, pack_weights_fp8_
`scaled`                  scaled_mm, scaled_mm_act, scaled_mm_dact, scaled_mm_add, scaled_mm_glu, scaled_mm_dglu,
                          scaled_dense
`fp8_linear`              scaled_linear
`fp8_dense_linear`        scaled_dense_linear
`activation_layer`        activation_pack, activation_backward_pack, activation_layer
========================  =====================================================================================

An op is what its reference computes (`kernels/<folder>/reference.py`); `providers.run` picks a faster way to say it.
Ops check words alone of their arguments (`contract.py`): `s24compile.ops` checks all, for people, and graphs are
checked when they are rewritten.
"""

from __future__ import annotations

from s24compile.kernels.ops.activation import act, act_backward, glu, glu_backward
from s24compile.kernels.ops.activation_layer import activation_backward_pack, activation_layer, activation_pack
from s24compile.kernels.ops.decay import masked_decay_, masked_decay_many_, masked_decay_patterns_
from s24compile.kernels.ops.devices import refuse_mixed_meta
from s24compile.kernels.ops.direct import define_direct_ops
from s24compile.kernels.ops.epilogues import mm_act, mm_add, mm_dact, mm_dact_sum, mm_dglu, mm_glu
from s24compile.kernels.ops.estimation import mvue, mvue_pack, mvue_pack_sum
from s24compile.kernels.ops.fp8 import (
    amax,
    glu_backward_amax,
    glu_backward_quantise_pack,
    pack_weights_fp8_,
    quantise,
    quantise_pack,
    unpack_transposed,
)
from s24compile.kernels.ops.fp8_dense_linear import scaled_dense_linear
from s24compile.kernels.ops.fp8_linear import scaled_linear
from s24compile.kernels.ops.gemm import linear, mm
from s24compile.kernels.ops.packing import pack, pack_both, pack_weight_, pack_weights_, unpack
from s24compile.kernels.ops.scaled import (
    scaled_dense,
    scaled_mm,
    scaled_mm_act,
    scaled_mm_add,
    scaled_mm_dact,
    scaled_mm_dglu,
    scaled_mm_glu,
)
from s24compile.kernels.ops.selection import (
    expand_patterns,
    flip_rate,
    magnitude_mask,
    magnitude_patterns,
    soft_threshold,
    soft_threshold_scale,
    transposable_mask,
    transposable_patterns,
)
from s24compile.kernels.ops.watching import compare_samples_, copy_samples_
from s24compile.torch_internals.operators import custom_name

OPS = (
    transposable_patterns,
    expand_patterns,
    transposable_mask,
    magnitude_patterns,
    magnitude_mask,
    soft_threshold,
    soft_threshold_scale,
    flip_rate,
    pack,
    unpack,
    pack_both,
    pack_weight_,
    pack_weights_,
    mvue,
    mvue_pack,
    mvue_pack_sum,
    mm,
    linear,
    mm_act,
    mm_dact,
    mm_dact_sum,
    mm_add,
    mm_glu,
    mm_dglu,
    act,
    act_backward,
    glu,
    glu_backward,
    masked_decay_,
    masked_decay_patterns_,
    masked_decay_many_,
    copy_samples_,
    compare_samples_,
    amax,
    quantise,
    quantise_pack,
    glu_backward_amax,
    glu_backward_quantise_pack,
    unpack_transposed,
    pack_weights_fp8_,
    scaled_mm,
    scaled_mm_act,
    scaled_mm_dact,
    scaled_mm_add,
    scaled_mm_glu,
    scaled_mm_dglu,
    scaled_dense,
    scaled_linear,
    scaled_dense_linear,
    activation_pack,
    activation_backward_pack,
    activation_layer,
)
"""Every op, as torch's CustomOpDef."""

for _op in OPS:
    refuse_mixed_meta(_op)
define_direct_ops()

NAMES = tuple(custom_name(op) for op in OPS)

__all__ = ["NAMES", "OPS", *NAMES]
