// The sparse main loop with one batch of wgmma kept in flight.
//
// CUTLASS's own waits for every k tile's wgmma before it releases the tile: the metadata sits in registers that the
// running wgmma still reads, so the next tile's cannot be loaded. Here two register sets take turns. Everything but
// mma() and mma_tail() is the base's.
#pragma once

#include "cutlass/cutlass.h"
#include "cutlass/pipeline/pipeline.hpp"
#include "cute/tensor.hpp"

namespace s24 {

using namespace cute;

// What CUTLASS's builder made, unchanged: the other choice for Gemm's `MainloopOf`.
template <class Base>
struct AsBuilt : Base {
  static constexpr bool kScaled = false;
};

// Where one lane finds its metadata of a k tile in shared memory, two words an atom: one for each wgmma along K.
// format.py draws the atoms, cute::GMMA::ELayout_64x32 and _64x64 which lane holds what.
template <int kElementBytes>
struct LaneMetadata;

template <>
struct LaneMetadata<2> {  // rows m0 and m0 + 8 of chunk k1: both k blocks lie side by side
  static constexpr int kWordsPerAtom = 64 * 64 / 32;
  CUTLASS_DEVICE static int first(int lane, int warp) { return 2 * ((warp * 2 + lane % 2) * 8 + lane / 4); }
  CUTLASS_DEVICE static uint2 load(uint32_t const* at) { return *reinterpret_cast<uint2 const*>(at); }
};

template <>
struct LaneMetadata<1> {  // row m0 + 8 (lane % 2), half of a k block; a row is 16 bytes, a k block 8 of them
  static constexpr int kWordsPerAtom = 64 * 128 / 32;
  CUTLASS_DEVICE static int first(int lane, int warp) {
    return 4 * (16 * warp + 8 * (lane % 2) + lane / 4) + lane / 2 % 2;
  }
  CUTLASS_DEVICE static uint2 load(uint32_t const* at) { return {at[0], at[2]}; }
};

template <class Base>
struct DeepMainloop : Base {
  static constexpr bool kScaled = false;
  using typename Base::ElementEMma;
  using typename Base::MainloopPipeline;
  using typename Base::Params;
  using typename Base::PipelineState;
  using typename Base::SmemLayoutA;
  using typename Base::SmemLayoutB;
  using typename Base::TensorStorage;
  using typename Base::TileShape;
  using typename Base::TiledMma;

  static constexpr int kWarpGroups = size(TiledMma{}) / cutlass::NumThreadsPerWarpGroup;
  static constexpr int kAtoms = size<0>(TileShape{}) / 64;        // of metadata, along M
  static constexpr int kAtomsPerGroup = kAtoms / kWarpGroups;     // wgmmas along M of one warpgroup
  using Lane = LaneMetadata<sizeof(typename Base::ElementA)>;

  template <class Accumulator>
  CUTLASS_DEVICE void mma(MainloopPipeline pipeline, PipelineState read, Accumulator& accum, int k_tiles,
                          int thread_idx, TensorStorage& storage, Params const&) {
    Tensor sA = make_tensor(make_smem_ptr(storage.smem_A.begin()), SmemLayoutA{});
    Tensor sB = make_tensor(make_smem_ptr(storage.smem_B.begin()), SmemLayoutB{});
    int group = __shfl_sync(0xFFFFFFFF, thread_idx / cutlass::NumThreadsPerWarpGroup, 0);
    TiledMma tiled_mma;
    auto thread_mma = tiled_mma.get_thread_slice(group * cutlass::NumThreadsPerWarpGroup);
    Tensor rA = thread_mma.make_fragment_A(thread_mma.partition_A(sA));  // (MMA, MMA_M, MMA_K, stage)
    Tensor rB = thread_mma.make_fragment_B(thread_mma.partition_B(sB));

    uint32_t const* metadata = reinterpret_cast<uint32_t const*>(&storage.smem_E) + group * Lane::kWordsPerAtom +
                               Lane::first(thread_idx % 32, thread_idx / 32 % 4);
    Tensor even = make_tensor<ElementEMma>(Shape<_32, Int<kAtomsPerGroup>, _2>{});
    Tensor odd = make_fragment_like(even);

    auto issue = [&](auto& rE) {
      pipeline.consumer_wait(read, pipeline.consumer_try_wait(read));
      int stage = read.index();
      Tensor words = recast<uint32_t>(rE);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kAtomsPerGroup; ++i) {
        uint2 pair = Lane::load(metadata + (stage * kAtoms + i * kWarpGroups) * Lane::kWordsPerAtom);
        words(0, i, 0) = pair.x;
        words(0, i, 1) = pair.y;
      }
      warpgroup_fence_operand(accum);
      warpgroup_arrive();
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < size<2>(rA); ++k) {
        cute::gemm(tiled_mma, make_zip_tensor(rA(_, _, k, stage), rE(_, _, k)), rB(_, _, k, stage), accum);
        tiled_mma.accumulate_ = GMMA::ScaleOut::One;
      }
      warpgroup_commit_batch();
      ++read;
    };

    PipelineState release = read;
    tiled_mma.accumulate_ = GMMA::ScaleOut::Zero;
    if (k_tiles == 0) {
      return;
    }
    issue(even);
    CUTLASS_PRAGMA_NO_UNROLL
    for (--k_tiles; k_tiles > 0; --k_tiles) {
      issue(odd);
      warpgroup_wait<1>();
      pipeline.consumer_release(release);
      ++release;
      if (--k_tiles == 0) {
        break;
      }
      issue(even);
      warpgroup_wait<1>();
      pipeline.consumer_release(release);
      ++release;
    }
    warpgroup_fence_operand(accum);
  }

  CUTLASS_DEVICE void mma_tail(MainloopPipeline pipeline, PipelineState release, int k_tiles) {
    if (k_tiles == 0) {
      return;
    }
    release.advance(k_tiles - 1);
    warpgroup_wait<0>();
    pipeline.consumer_release(release);
  }
};

}  // namespace s24
