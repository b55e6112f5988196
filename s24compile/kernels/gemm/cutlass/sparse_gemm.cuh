// D[m, n] = epilogue(S[m, k] B[k, n]), S 2:4-sparse and packed as s24compile/kernels/format.py draws it ("sm90").
//
// One template of CUTLASS 3.x pieces for Hopper's sparse wgmma; instantiations.py holds the table of what is built from
// it and build.py writes one .cu per row. The boundary is plain C: raw pointers, element strides, a stream.
//
// Why no can_implement(): CUTLASS derives the alignment it asks for from the problem's shape (K % 16, M % 8, ...). TMA
// needs it of base addresses and *strides* only and fills what lies outside the tensor with zeros, so every M, N, K
// works once pitches are multiples of 16 bytes. Gemm::run checks exactly that.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

#include <cuda_runtime.h>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/operations.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/gemm/kernel/tile_scheduler.hpp"

#include "deep_mainloop.cuh"

namespace s24 {

using namespace cute;
using Row = cutlass::layout::RowMajor;
using Col = cutlass::layout::ColumnMajor;

// Mirrored by loader.py (struct format "=18q10i2f"): 64-bit fields first, so that both sides agree without padding.
// Strides are in elements of their own tensor: the distance between two consecutive rows (or columns) of the major
// direction. `metadata_stride`: cells (16 bits beside 16-bit values, 8 beside 8-bit ones) between two K atoms, so that
// a row range of a larger operand is just a view.
struct Problem {
  void const* values;
  void const* metadata;
  void const* b;
  void* d;
  void const* source;  // C of the "add" epilogue, added with weight beta
  void* aux;           // Z: written by "act", read by "dact"
  void const* bias;    // one per row of D, or null
  float const* descale_a;  // 8-bit operands: what S's and B's values are multiplied by, one number each, in device
  float const* descale_b;  // memory
  float* amax;             // receives the largest finite magnitude of H or dZ; holds 0 before
  void* workspace;
  int64_t workspace_bytes;
  int64_t values_stride, metadata_stride, b_stride, d_stride, aux_stride;
  int64_t other;  // gated epilogues: elements from the half of Z that the activation sees to the other half
  int32_t m, n, k;
  int32_t raster;   // 0 along M first, 1 along N first
  int32_t swizzle;  // width of the raster band in tiles: 1, 2, 4, 8
  int32_t splits;   // stream-K kernels: 0 heuristic, 1 one tile per block, > 1 that many K splits, -1 stream-K
  int32_t device;
  int32_t sm_count;
  int32_t metadata_rows;  // 64-row atoms present in the metadata view
  int32_t pdl;  // programmatic dependent launch: the prologue overlaps the previous kernel's tail (see run)
  float alpha, beta;
};

// What run() returns; positive values are cudaError_t.
enum Result { kDone = 0, kMisaligned = -1, kBadConfig = -2 };

// ---------------------------------------------------------------------------------------------------- epilogues
// Each says which CUTLASS fusion it is, what is loaded as C and stored as D (void: the fusion's own affair), in which
// subtiles, and how a Problem fills the fusion's arguments. Those with activations are in activation_epilogues.cuh and
// gated_epilogues.cuh: a kernel is built anew only when its own files change. `Descriptor` tells visitors the tile,
// stages and subtile of the epilogue that they are part of.

template <class ElementD>
struct Plain {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;
  template <class Descriptor>
  using FusionFor = cutlass::epilogue::fusion::LinearCombination<ElementD, float, void, float>;
  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const&) {
    thread.alpha = p.alpha;
    thread.beta = 0.0f;
  }
};

template <class ElementD>
struct Add {
  using Source = ElementD;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;
  template <class Descriptor>
  using FusionFor = cutlass::epilogue::fusion::LinearCombination<ElementD, float, ElementD, float>;
  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const&) {
    thread.alpha = p.alpha;
    thread.beta = p.beta;
  }
};

template <class ElementD, class ElementBias>
struct Bias {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;
  template <class Descriptor>
  using FusionFor = cutlass::epilogue::fusion::LinCombPerRowBias<ElementD, float, ElementBias, void, float>;
  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const&) {
    thread.alpha = p.alpha;
    thread.beta = 0.0f;
    thread.bias_ptr = static_cast<ElementBias const*>(p.bias);
  }
};

// ---------------------------------------------------------------------------------------------------- the GEMM

template <class Stride>
Stride pitched(int64_t pitch) {  // fills the one dynamic stride of a 2-D operand, whichever mode holds it
  Stride stride{};
  if constexpr (cute::is_static_v<decltype(get<0>(stride))>) {
    get<1>(stride) = pitch;
  } else {
    get<0>(stride) = pitch;
  }
  return stride;
}

template <class Element, class LayoutA, class ElementB, class LayoutB, class ElementD, class LayoutD, class Epilogue,
          class Tile, class Cluster, class MainloopSchedule, template <class> class MainloopOf, class EpilogueSchedule,
          class Scheduler>
struct Gemm {
  static_assert(sizeof(Element) == sizeof(ElementB));
  static constexpr int kAlign = 16 / sizeof(Element);  // elements in TMA's 16 bytes
  static constexpr int kAlignD = 16 / sizeof(ElementD);
  static constexpr int kPerCell = 8 * sizeof(Element);  // logical elements that one cell of metadata describes

  using Descriptor = cutlass::epilogue::collective::detail::EpilogueDescriptor<
      Tile, typename Epilogue::Subtile, typename Epilogue::Source, typename Epilogue::Destination, EpilogueSchedule>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, Tile, Cluster, typename Epilogue::Subtile, float,
      float, typename Epilogue::Source, LayoutD, kAlignD, typename Epilogue::Destination, LayoutD, kAlignD,
      EpilogueSchedule, typename Epilogue::template FusionFor<Descriptor>>::CollectiveOp;
  using BuiltMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, Element, LayoutA, kAlign, ElementB, LayoutB, kAlign,
      float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      MainloopSchedule>::CollectiveOp;
  using CollectiveMainloop = MainloopOf<BuiltMainloop>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop,
                                                      CollectiveEpilogue, Scheduler>;
  using Adapter = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using StrideD = typename Kernel::StrideD;
  static_assert(size<2>(Tile{}) * sizeof(Element) == 128, "the metadata format has K atoms of 128 bytes of B: so must "
                                                          "the tile");
  static constexpr bool kStreamK = cute::is_same_v<Scheduler, cutlass::gemm::StreamKScheduler>;

  static bool aligned(void const* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

  // TMA's demands; tensors that the epilogue ignores are null, their strides 0.
  static bool aligned(Problem const& p) {
    return aligned(p.values) && aligned(p.metadata) && aligned(p.b) && aligned(p.d) && aligned(p.aux) &&
           aligned(p.source) && p.values_stride % kAlign == 0 && p.metadata_stride % kAlign == 0 &&
           p.b_stride % kAlign == 0 && p.d_stride % kAlignD == 0 && p.aux_stride % kAlignD == 0;
  }

  static typename Kernel::Arguments arguments(Problem const& p) {
    using Mainloop = CollectiveMainloop;
    typename Kernel::Arguments args{};
    args.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    args.problem_shape = make_shape(p.m, p.n, p.k, 1);

    // A: fill_layoutA gives the dense-looking sparse layout; only its pitch is ours (in logical elements: twice).
    auto layout_a = Mainloop::SparseConfig::fill_layoutA(make_shape(p.m, p.n, round_up(p.k, 2 * kAlign), 1));
    auto stride_a = layout_a.stride();
    auto shape_a = layout_a.shape();
    if constexpr (Mainloop::is_A_mn_major) {
      get<1, 1>(stride_a) = p.values_stride * 2;
    } else {
      get<0>(stride_a) = p.values_stride * 2;
    }
    get<0>(shape_a) = p.m;
    get<1, 1>(shape_a) = (p.k + 3) / 4 * 2;  // values present per row; the rest of the last tile reads as zero
    args.mainloop.layout_a = make_layout(shape_a, stride_a);

    auto layout_e = Mainloop::SparseConfig::fill_layoutE(make_shape(p.m, p.n, p.k, 1));
    auto stride_e = layout_e.stride();
    auto shape_e = layout_e.shape();
    get<1, 1>(stride_e) = p.metadata_stride * kPerCell;
    get<0, 1>(shape_e) = p.metadata_rows;
    args.mainloop.layout_e = make_layout(shape_e, stride_e);

    args.mainloop.ptr_A = static_cast<Element const*>(p.values);
    args.mainloop.ptr_E = static_cast<typename Mainloop::ElementE const*>(p.metadata);
    args.mainloop.ptr_B = static_cast<ElementB const*>(p.b);
    args.mainloop.dB = pitched<typename Kernel::StrideB>(p.b_stride);
    if constexpr (Mainloop::kScaled) {
      args.mainloop.descale_a = p.descale_a;
      args.mainloop.descale_b = p.descale_b;
    }

    StrideD stride_d = pitched<StrideD>(p.d_stride);
    args.epilogue.ptr_D = static_cast<ElementD*>(p.d);
    args.epilogue.dD = stride_d;
    if constexpr (!cute::is_void_v<typename Epilogue::Source>) {
      args.epilogue.ptr_C = static_cast<ElementD const*>(p.source);
      args.epilogue.dC = pitched<typename Kernel::StrideC>(p.aux_stride);
    }
    Epilogue::fill(args.epilogue.thread, p, pitched<StrideD>(p.aux_stride));

    args.hw_info.device_id = p.device;
    args.hw_info.sm_count = p.sm_count;
    args.scheduler.max_swizzle_size = p.swizzle;
    using Raster = cute::remove_cvref_t<decltype(args.scheduler.raster_order)>;
    args.scheduler.raster_order = p.raster ? Raster::AlongN : Raster::AlongM;
    if constexpr (kStreamK) {
      using Mode = cute::remove_cvref_t<decltype(args.scheduler.decomposition_mode)>;
      args.scheduler.splits = p.splits > 1 ? p.splits : 1;
      args.scheduler.decomposition_mode = p.splits > 1    ? Mode::SplitK
                                          : p.splits == 1 ? Mode::DataParallel
                                          : p.splits == 0 ? Mode::Heuristic
                                                          : Mode::StreamK;
    }
    return args;
  }

  static int64_t workspace(Problem const& p) { return static_cast<int64_t>(Kernel::get_workspace_size(arguments(p))); }

  // The shared-memory limit is a property of the function on one device; set once for each.
  static cudaError_t prepare(int device) {
    static std::atomic<bool> ready[64] = {};
    if (device < 0 || device >= 64) {
      return cudaErrorInvalidDevice;
    }
    if (!ready[device].load(std::memory_order_acquire)) {
      cudaError_t error =
          cudaFuncSetAttribute(cutlass::device_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               Kernel::SharedStorageSize);
      if (error != cudaSuccess) {
        return error;
      }
      ready[device].store(true, std::memory_order_release);
    }
    return cudaSuccess;
  }

  // The parameters of problems seen before, kept for good: some 2 KB each. Making them encodes three to five TMA
  // descriptors; a training step repeats its addresses, in deep models a hundred for one kernel. Direct-mapped, and
  // large enough that few collide: a collision costs making them again, at each step.
  struct Remembered {
    Problem problem;
    typename Kernel::Params params;
  };
  static constexpr int kRemembered = 4096;

  static std::unique_ptr<Remembered>& place_of(Problem const& p) {
    static_assert(sizeof(Problem) % 8 == 0);
    static std::unique_ptr<Remembered> table[kRemembered];
    uint64_t words[sizeof(Problem) / 8], hash = 14695981039346656037ull;
    std::memcpy(words, &p, sizeof(Problem));
    for (uint64_t word : words) {
      hash = (hash ^ (word >> 4)) * 1099511628211ull;
    }
    return table[(hash >> 32) % kRemembered];
  }

  static cutlass::Status launch(Problem const& p, cudaStream_t stream) {
    static std::mutex mutex;  // the autograd thread launches too
    std::lock_guard<std::mutex> lock(mutex);
    auto& place = place_of(p);
    if (!place || std::memcmp(&place->problem, &p, sizeof(Problem)) != 0) {
      auto args = arguments(p);
      if constexpr (kStreamK) {
        if (p.workspace_bytes < static_cast<int64_t>(Kernel::get_workspace_size(args))) {
          return cutlass::Status::kErrorWorkspaceNull;
        }
      }
      place.reset(new Remembered{p, Kernel::to_underlying_arguments(args, p.workspace)});
    }
    if constexpr (kStreamK) {
      cutlass::Status status = Kernel::initialize_workspace(arguments(p), p.workspace, stream);
      if (status != cutlass::Status::kSuccess) {
        return status;
      }
    }
    // Safe with pdl: the producer warps wait for the previous grid before their first load, and every store (and the
    // bias load) comes after data that they loaded. A memset before the kernel (stream-K) rules it out.
    return Adapter::run(place->params, stream, nullptr, !kStreamK && p.pdl != 0);
  }

  static int run(Problem const& p, cudaStream_t stream) {
    if (!aligned(p)) {
      return kMisaligned;
    }
    // This library has its own static CUDA runtime, whose idea of the current device may lag behind torch's. Set it
    // also where it is the same: on a thread that has not used CUDA yet only this makes the context current, without
    // which no TMA descriptor can be encoded.
    int before = p.device;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess) {
      error = cudaSetDevice(p.device);
    }
    if (error == cudaSuccess) {
      error = prepare(p.device);
    }
    if (error != cudaSuccess) {
      return static_cast<int>(error);
    }
    cutlass::Status status = launch(p, stream);
    error = cudaGetLastError();
    if (before != p.device) {
      cudaSetDevice(before);
    }
    if (error != cudaSuccess) {
      return static_cast<int>(error);
    }
    return status == cutlass::Status::kSuccess ? kDone : kBadConfig;
  }
};

}  // namespace s24

// The three symbols of every built object. `s24_abi` is the size of Problem, checked by the loader.
#define S24_EXPORT(GEMM)                                                                                     \
  extern "C" int s24_abi() { return static_cast<int>(sizeof(s24::Problem)); }                                \
  extern "C" int64_t s24_workspace(s24::Problem const* problem) { return GEMM::workspace(*problem); }        \
  extern "C" int s24_gemm(s24::Problem const* problem, void* stream) {                                       \
    return GEMM::run(*problem, static_cast<cudaStream_t>(stream));                                           \
  }
