// The largest finite magnitude of what an epilogue computes: what the result will be quantised by.
#pragma once

#include "cutlass/array.h"

#include "sparse_gemm.cuh"

namespace s24 {

namespace fusion = cutlass::epilogue::fusion;

// Two instructions an element. The key is the float's bits without the sign, shifted and moved so that Inf and NaN wrap
// around to below all finite numbers, and unsigned comparison orders the rest.
struct Largest {
  uint32_t key = 0;

  CUTLASS_DEVICE void see(float x) { key = max(key, 2u * __float_as_uint(x) + kZero); }

  // One atomic a warp. All of its lanes come here.
  CUTLASS_DEVICE void store(float* at) const {
    uint32_t most = __reduce_max_sync(0xFFFFFFFF, key);
    if (most > kZero && threadIdx.x % 32 == 0) {
      // Non-negative floats are ordered as their bits are.
      atomicMax(reinterpret_cast<unsigned int*>(at), (most - kZero) / 2);
    }
  }

 private:
  static constexpr uint32_t kZero = 0x01000000;  // of 0.0
};

// A node of the visitor tree that passes on what it sees. Beyond the edges of D nothing counts: with a bias the sums
// there are not 0.
template <class Descriptor>
struct Amax {
  struct SharedStorage {};
  struct Arguments {
    float* amax = nullptr;
  };
  using Params = Arguments;

  template <class ProblemShape>
  static Params to_underlying_arguments(ProblemShape const&, Arguments const& args, void*) {
    return args;
  }
  template <class ProblemShape>
  static bool can_implement(ProblemShape const&, Arguments const&) {
    return true;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(ProblemShape const&, Arguments const&) {
    return 0;
  }
  template <class ProblemShape>
  static cutlass::Status initialize_workspace(ProblemShape const&, Arguments const&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  Params const* params = nullptr;

  CUTLASS_HOST_DEVICE Amax() {}
  CUTLASS_HOST_DEVICE Amax(Params const& params, SharedStorage const&) : params(&params) {}
  CUTLASS_DEVICE bool is_producer_load_needed() const { return false; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return false; }
  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(fusion::ProducerLoadArgs<Args...> const&) {
    return fusion::EmptyProducerLoadCallbacks{};
  }

  template <class Coordinates, class Residue>
  struct Callbacks : fusion::EmptyConsumerStoreCallbacks {
    float* amax;
    Coordinates at;   // (CPY, CPY_M, CPY_N, EPI_M, EPI_N)
    Residue edge;
    bool whole;       // all of the tile lies within D
    Largest largest;

    CUTLASS_DEVICE Callbacks(float* amax, Coordinates at, Residue edge, bool whole)
        : amax(amax), at(at), edge(edge), whole(whole) {}

    template <class Accumulator, class Element, int N>
    CUTLASS_DEVICE cutlass::Array<Element, N> visit(cutlass::Array<Accumulator, N> const&, int epi_v, int epi_m,
                                                    int epi_n, cutlass::Array<Element, N> const& x) {
      if (whole) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < N; ++i) {
          largest.see(float(x[i]));
        }
      } else {
        Tensor here = at(_, _, _, epi_m, epi_n);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < N; ++i) {
          if (elem_less(here(epi_v * N + i), edge)) {
            largest.see(float(x[i]));
          }
        }
      }
      return x;
    }

    CUTLASS_DEVICE void end() { largest.store(amax); }
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(fusion::ConsumerStoreArgs<Args...> const& args) {
    int m = (get<0>(args.tile_coord_mnkl) + 1) * get<0>(args.tile_shape_mnk);
    int n = (get<1>(args.tile_coord_mnkl) + 1) * get<1>(args.tile_shape_mnk);
    bool whole = m <= get<0>(args.problem_shape_mnkl) && n <= get<1>(args.problem_shape_mnkl);
    return Callbacks<decltype(args.tCcD), decltype(args.residue_tCcD)>(params->amax, args.tCcD, args.residue_tCcD,
                                                                       whole);
  }
};

// Another tree, observed: what an epilogue with `kAmax` is made of.
template <bool kAmax, class Descriptor, class Tree>
struct Observed {
  using Type = Tree;
};
template <class Descriptor, class Tree>
struct Observed<true, Descriptor, Tree> {
  using Type = fusion::Sm90EVT<Amax<Descriptor>, Tree>;
};

// Says where the amax goes; returns the arguments of the tree itself.
template <bool kAmax, class Thread>
auto& observed(Thread& thread, Problem const& p) {
  if constexpr (kAmax) {
    thread.op_1.amax = p.amax;
    return thread.op_0;
  } else {
    return thread;
  }
}

}  // namespace s24
