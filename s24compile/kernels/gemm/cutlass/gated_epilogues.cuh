// Epilogues of gated layers: Z and H = f(gate) * up from one GEMM, and dZ from the GEMM that makes dH.
//
// Legend: T tokens, F hidden width. Z is [T, 2F] row-major, its two halves side by side: as the GEMM sees it, two
// column-major matrices [F, T] with the pitch of Z, `Problem::other` elements apart.
#pragma once

#include "activations.cuh"
#include "amax.cuh"

namespace s24 {

// ---------------------------------------------------------------------------------------------------- forward
// D's rows are interleaved by eight (rows 16 i .. 16 i + 7: features 8 i .. 8 i + 7 of the first half, the next eight
// rows: the same features of the second), because wgmma gives a thread rows r and r + 8. So both halves of a feature
// meet in one thread, and D itself is never stored: three tiles of half its height are, of Z's halves and of H.
// Beyond the edges of D its sums are 0 (a GLU takes no bias), so H is 0 there and counts for no amax.
template <class Descriptor, class Function, class Element, bool kAmax>
struct GluStore {
  using ElementAux = Element;  // what CUTLASS asks for where D is void
  static constexpr int kFeatures = size<0>(typename Descriptor::EpilogueTile{}) / 2;
  static constexpr int kTokens = size<1>(typename Descriptor::EpilogueTile{});
  static constexpr int kStages = Descriptor::StagesD;
  static constexpr int kTiles = 3;  // first half, second half, H
  static_assert(kTokens == 32, "a lane gives stmatrix the address of one token");

  using StrideMNL = Stride<_1, int64_t, int64_t>;
  using Tile = Shape<Int<kFeatures>, Int<kTokens>>;
  using SmemAtom = decltype(cutlass::epilogue::collective::detail::sm90_get_epilogue_smem_swizzle_layout_atom<
                            StrideMNL, Element, Tile>());
  using SmemTile = decltype(tile_to_shape(SmemAtom{}, Tile{}, Step<_2, _1>{}));
  using SmemLayout = decltype(tile_to_shape(SmemAtom{}, Shape<Int<kFeatures>, Int<kTokens>, Int<kTiles * kStages>>{},
                                            Step<_2, _1, _3>{}));

  struct SharedStorage {
    alignas(cutlass::detail::alignment_for_swizzle(SmemLayout{})) cute::array_aligned<Element, size(SmemLayout{})> smem;
  };
  struct Arguments {
    Element* z = nullptr;
    Element* h = nullptr;
    int64_t other = 0;  // negative: the activation is of the second half
    int64_t z_stride = 0, h_stride = 0;
    float* amax = nullptr;  // of H
  };
  using Tma = decltype(make_tma_copy(
      SM90_TMA_STORE{},
      make_tensor(static_cast<Element*>(nullptr), repeat_like(StrideMNL{}, int32_t(0)), StrideMNL{}), SmemTile{}));
  struct Params {
    Tma first, second, h;
    bool swapped;
    float* amax;
  };

  template <class ProblemShape>
  static Params to_underlying_arguments(ProblemShape const& shape, Arguments const& args, void*) {
    auto tma = [&](Element* at, int64_t stride) {
      auto layout = make_layout(make_shape(int32_t(get<0>(shape)) / 2, int32_t(get<1>(shape)), int32_t(1)),
                                StrideMNL{_1{}, stride, 0});
      return make_tma_copy(SM90_TMA_STORE{}, make_tensor(at, layout), SmemTile{});
    };
    int64_t apart = args.other < 0 ? -args.other : args.other;
    return {tma(args.z, args.z_stride), tma(args.z + apart, args.z_stride), tma(args.h, args.h_stride), args.other < 0,
            args.amax};
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
  Element* smem = nullptr;

  CUTLASS_HOST_DEVICE GluStore() {}
  CUTLASS_HOST_DEVICE GluStore(Params const& params, SharedStorage const& storage)
      : params(&params), smem(const_cast<Element*>(storage.smem.data())) {}
  CUTLASS_DEVICE bool is_producer_load_needed() const { return false; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return false; }
  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(fusion::ProducerLoadArgs<Args...> const&) {
    return fusion::EmptyProducerLoadCallbacks{};
  }

  template <class Smem, class SmemTma, class GmemTma>
  struct Callbacks : fusion::EmptyConsumerStoreCallbacks {
    Params const* params;
    Smem s;                          // (feature, token, tile of a stage)
    SmemTma s_tma;                   // (TMA, TMA_M, TMA_N, tile of a stage)
    GmemTma g_first, g_second, g_h;  // (TMA, TMA_M, TMA_N, EPI_M, EPI_N)
    int feature, token;              // where this lane's addresses for stmatrix are
    uint32_t first[4], second[4], h[4];  // two tokens of a feature each: one register of an 8x8 matrix
    Largest largest;

    CUTLASS_DEVICE Callbacks(Params const* params, Smem s, SmemTma s_tma, GmemTma g_first, GmemTma g_second,
                             GmemTma g_h, int feature, int token)
        : params(params), s(s), s_tma(s_tma), g_first(g_first), g_second(g_second), g_h(g_h), feature(feature),
          token(token) {}

    CUTLASS_DEVICE static uint32_t pack(float x, float y) {
      auto both = cutlass::NumericArrayConverter<Element, float, 2>::convert({x, y});
      return reinterpret_cast<uint32_t const&>(both);
    }

    // z: for each of four blocks of 8 tokens (token 2t, row r), (2t + 1, r), (2t, r + 8), (2t + 1, r + 8).
    template <class Accumulator, int N>
    CUTLASS_DEVICE cutlass::Array<float, N> visit(cutlass::Array<Accumulator, N> const&, int, int, int,
                                                  cutlass::Array<float, N> const& z) {
      static_assert(N == 16);
      bool swapped = params->swapped;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 4; ++i) {
        float out[2];
        CUTLASS_PRAGMA_UNROLL
        for (int j = 0; j < 2; ++j) {
          float a = z[4 * i + j], b = z[4 * i + 2 + j];
          out[j] = Function::forward(swapped ? b : a) * (swapped ? a : b);
          if constexpr (kAmax) {
            largest.see(out[j]);
          }
        }
        first[i] = pack(z[4 * i], z[4 * i + 1]);
        second[i] = pack(z[4 * i + 2], z[4 * i + 3]);
        h[i] = pack(out[0], out[1]);
      }
      return z;
    }

    CUTLASS_DEVICE void postreduce(int, int, int iteration, bool issue_smem_store) {
      if (issue_smem_store) {
        int stage = iteration % kStages * kTiles;
        put(first, stage);
        put(second, stage + 1);
        put(h, stage + 2);
      }
    }

    CUTLASS_DEVICE void end() {
      if constexpr (kAmax) {
        largest.store(params->amax);
      }
    }

    CUTLASS_DEVICE void put(uint32_t const (&words)[4], int tile) {
      auto& row = *reinterpret_cast<uint128_t*>(raw_pointer_cast(&s(feature, token, tile)));
      SM90_U16x8_STSM_T::copy(words[0], words[1], words[2], words[3], row);
    }

    CUTLASS_DEVICE void tma_store(int epi_m, int epi_n, int iteration, bool issue_tma_store) {
      if (issue_tma_store) {
        int stage = iteration % kStages * kTiles;
        copy(params->first, s_tma(_, _, _, stage), g_first(_, _, _, epi_m, epi_n));
        copy(params->second, s_tma(_, _, _, stage + 1), g_second(_, _, _, epi_m, epi_n));
        copy(params->h, s_tma(_, _, _, stage + 2), g_h(_, _, _, epi_m, epi_n));
      }
    }
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(fusion::ConsumerStoreArgs<Args...> const& args) {
    auto shape = make_shape(int(get<0>(args.problem_shape_mnkl)) / 2, int(get<1>(args.problem_shape_mnkl)), 1);
    auto at = make_coord(get<0>(args.tile_coord_mnkl), get<1>(args.tile_coord_mnkl), 0);
    auto tile = make_shape(Int<size<0>(decltype(args.tile_shape_mnk){}) / 2>{}, get<1>(args.tile_shape_mnk));
    Tensor s_tiles = as_position_independent_swizzle_tensor(make_tensor(make_smem_ptr(smem), SmemLayout{}));
    auto global = [&](Tma const& tma) CUTLASS_LAMBDA_FUNC_INLINE {
      Tensor mine = local_tile(tma.get_tma_tensor(shape), tile, at);
      return tma.get_slice(_0{}).partition_D(flat_divide(mine, Tile{}));
    };
    auto g_first = global(params->first);
    auto s_tma = params->first.get_slice(_0{}).partition_S(s_tiles);
    return Callbacks<decltype(s_tiles), decltype(s_tma), decltype(g_first)>(
        params, s_tiles, s_tma, g_first, global(params->second), global(params->h), args.thread_idx / 32 * 8,
        args.thread_idx % 32);
  }
};

template <class Function, class ElementD, bool kAmax = false>
struct Glu {
  using Source = void;
  using Destination = void;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;
  template <class Descriptor>
  using FusionFor = fusion::Sm90EVT<GluStore<Descriptor, Function, ElementD, kAmax>, fusion::Sm90AccFetch>;
  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const&) {
    thread.op_1 = {static_cast<ElementD*>(p.aux), static_cast<ElementD*>(p.d), p.other, p.aux_stride, p.d_stride,
                   p.amax};
  }
};

// ---------------------------------------------------------------------------------------------------- backward
// From acc = dH and both halves of Z: D = dH up f'(gate), the half of dZ that the activation saw, and aux = dH f(gate).
// Both count for the amax of dZ; beyond its edges dH is 0.
template <class Function, class Store, bool kAmax>
struct GluGradientStore : Store {
  struct Arguments : Store::Arguments {
    float* amax = nullptr;
  };
  struct Params : Store::Params {
    float* amax;
  };
  template <class ProblemShape>
  static Params to_underlying_arguments(ProblemShape const& shape, Arguments const& args, void* workspace) {
    return {Store::to_underlying_arguments(shape, args, workspace), args.amax};
  }

  float* amax = nullptr;

  CUTLASS_HOST_DEVICE GluGradientStore() {}
  CUTLASS_HOST_DEVICE GluGradientStore(Params const& params, typename Store::SharedStorage const& storage)
      : Store(params, storage), amax(params.amax) {}

  template <class Base>
  struct Callbacks : Base {
    float* amax;
    Largest largest;

    CUTLASS_DEVICE Callbacks(Base&& base, float* amax) : Base(cute::forward<Base>(base)), amax(amax) {}

    template <class Accumulator, class Element, int N>
    CUTLASS_DEVICE cutlass::Array<float, N> visit(cutlass::Array<Accumulator, N> const& acc, int v, int m, int n,
                                                  cutlass::Array<float, N> const& dh,
                                                  cutlass::Array<Element, N> const& gate,
                                                  cutlass::Array<Element, N> const& up) {
      cutlass::Array<float, N> d_gate, d_up;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < N; ++i) {
        Both f = Function::both(float(gate[i]));
        d_up[i] = dh[i] * f.value;
        d_gate[i] = dh[i] * float(up[i]) * f.slope;
        if constexpr (kAmax) {
          largest.see(d_up[i]);
          largest.see(d_gate[i]);
        }
      }
      Base::visit(acc, v, m, n, d_up);
      return d_gate;
    }

    CUTLASS_DEVICE void end() {
      if constexpr (kAmax) {
        largest.store(amax);
      }
      Base::end();
    }
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(fusion::ConsumerStoreArgs<Args...> const& args) {
    auto base = Store::template get_consumer_store_callbacks<ReferenceSrc>(args);
    return Callbacks<decltype(base)>(cute::move(base), amax);
  }
};

template <class Function, class ElementD, class LayoutD, bool kAmax = false>
struct DGlu {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;

  template <class Descriptor>
  struct Tree {
    using In = cutlass::epilogue::collective::detail::AuxLoadDescriptor<Descriptor, LayoutD, ElementD>;
    using Load = fusion::Sm90AuxLoad<In::Stages, typename In::EpilogueTile, ElementD, typename In::Stride,
                                     typename In::SmemLayoutAtom, typename In::CopyOpS2R>;
    using Out = cutlass::epilogue::collective::detail::AuxStoreDescriptor<Descriptor, LayoutD, ElementD>;
    using Store = fusion::Sm90AuxStore<Out::Stages, typename Out::EpilogueTile, ElementD,
                                       cutlass::FloatRoundStyle::round_to_nearest, typename Out::Stride,
                                       typename Out::SmemLayoutAtom, typename Out::CopyOpR2S>;
    using Type = fusion::Sm90EVT<GluGradientStore<Function, Store, kAmax>, fusion::Sm90AccFetch, Load, Load>;
  };
  template <class Descriptor>
  using FusionFor = typename Tree<Descriptor>::Type;

  // p.d and p.aux are the halves that the activation saw, of dZ and of Z; the others are p.other elements away.
  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const& stride_aux) {
    auto z = static_cast<ElementD const*>(p.aux);
    thread.op_1.ptr_aux = z;
    thread.op_1.dAux = stride_aux;
    thread.op_2.ptr_aux = z + p.other;
    thread.op_2.dAux = stride_aux;
    thread.op_3.ptr_aux = static_cast<ElementD*>(p.d) + p.other;
    thread.op_3.dAux = pitched<StrideAux>(p.d_stride);
    thread.op_3.amax = p.amax;
  }
};

}  // namespace s24
