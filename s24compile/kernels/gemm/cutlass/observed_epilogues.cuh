// The epilogues of activation_epilogues.cuh with the largest magnitude of what they compute: of H, or of dZ.
//
// Spelled out as visitor trees, because CUTLASS's own of these names record an amax for 8-bit results only.
#pragma once

#include "activations.cuh"
#include "amax.cuh"

namespace s24 {

constexpr auto kNearest = cutlass::FloatRoundStyle::round_to_nearest;

// D = f(acc + bias), aux = acc + bias, amax of D before it is rounded. The bias may be null.
template <template <class> class Function, class ElementD, class LayoutD, class ElementBias>
struct ActAmax {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;

  template <class Descriptor>
  struct Tree {
    using Out = cutlass::epilogue::collective::detail::AuxStoreDescriptor<Descriptor, LayoutD, ElementD>;
    using Store = fusion::Sm90AuxStore<Out::Stages, typename Out::EpilogueTile, ElementD, kNearest,
                                       typename Out::Stride, typename Out::SmemLayoutAtom, typename Out::CopyOpR2S>;
    using Bias = fusion::Sm90ColBroadcast<0, typename Descriptor::TileShape, ElementBias, float,
                                          cute::Stride<cute::_1, cute::_0, int64_t>>;
    using Z = fusion::Sm90EVT<Store, fusion::Sm90EVT<fusion::Sm90Compute<cutlass::plus, float, float, kNearest>,
                                                     fusion::Sm90AccFetch, Bias>>;
    using Type = typename Observed<
        true, Descriptor, fusion::Sm90EVT<fusion::Sm90Compute<Function, float, float, kNearest>, Z>>::Type;
  };
  template <class Descriptor>
  using FusionFor = typename Tree<Descriptor>::Type;

  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const& stride_aux) {
    auto& z = observed<true>(thread, p).op_0;
    z.op_0.op_1.ptr_col = static_cast<ElementBias const*>(p.bias);
    z.op_1.ptr_aux = static_cast<ElementD*>(p.aux);
    z.op_1.dAux = stride_aux;
  }
};

// D = acc f'(Z), Z read as aux, amax of D before it is rounded.
template <template <class> class Function, class ElementD, class LayoutD>
struct DActAmax {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;

  template <class Descriptor>
  struct Tree {
    using In = cutlass::epilogue::collective::detail::AuxLoadDescriptor<Descriptor, LayoutD, ElementD>;
    using Load = fusion::Sm90AuxLoad<In::Stages, typename In::EpilogueTile, ElementD, typename In::Stride,
                                     typename In::SmemLayoutAtom, typename In::CopyOpS2R>;
    using Type = typename Observed<
        true, Descriptor,
        fusion::Sm90EVT<fusion::Sm90Compute<Function, float, float, kNearest>, fusion::Sm90AccFetch, Load>>::Type;
  };
  template <class Descriptor>
  using FusionFor = typename Tree<Descriptor>::Type;

  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const& stride_aux) {
    auto& z = observed<true>(thread, p).op_1;
    z.ptr_aux = static_cast<ElementD const*>(p.aux);
    z.dAux = stride_aux;
  }
};

}  // namespace s24
