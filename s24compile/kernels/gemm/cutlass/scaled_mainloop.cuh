// A main loop whose sums are those of the values that 8-bit operands stand for.
//
// S = descale_a A and B = descale_b B', one number a tensor, so S B = descale_a descale_b A B'. The accumulators are
// multiplied here, between the last wgmma and the epilogue: every epilogue sees the same sums as with 16-bit operands.
#pragma once

#include "deep_mainloop.cuh"

namespace s24 {

template <class Base>
struct ScaledMainloop : Base {
  using typename Base::MainloopPipeline;
  using typename Base::PipelineState;
  using typename Base::TensorStorage;
  static constexpr bool kScaled = true;

  struct Arguments : Base::Arguments {
    float const* descale_a = nullptr;
    float const* descale_b = nullptr;
  };
  struct Params : Base::Params {
    float const* descale_a;
    float const* descale_b;
  };

  template <class ProblemShape>
  static Params to_underlying_arguments(ProblemShape const& shape, Arguments const& args, void* workspace) {
    return {Base::to_underlying_arguments(shape, args, workspace), args.descale_a, args.descale_b};
  }

  template <class Accumulator>
  CUTLASS_DEVICE void mma(MainloopPipeline pipeline, PipelineState read, Accumulator& accum, int k_tiles,
                          int thread_idx, TensorStorage& storage, Params const& params) {
    Base::mma(pipeline, read, accum, k_tiles, thread_idx, storage, params);
    // Only now: with programmatic dependent launch the kernels that write them are known to be done once their data
    // has been multiplied.
    float descale = *params.descale_a * *params.descale_b;
    warpgroup_wait<0>();
    warpgroup_fence_operand(accum);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < size(accum); ++i) {
      accum(i) *= descale;
    }
  }
};

template <class Built>
using ScaledAsBuilt = ScaledMainloop<AsBuilt<Built>>;
template <class Built>
using ScaledDeep = ScaledMainloop<DeepMainloop<Built>>;

}  // namespace s24
