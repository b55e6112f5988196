// Epilogues of plain feed-forward layers: the activation beside its input, and its derivative.
#pragma once

#include "activations.cuh"
#include "sparse_gemm.cuh"

namespace s24 {

// D = f(alpha acc + bias), aux = alpha acc + bias. Z has D's type and layout; a null aux stores nothing.
template <template <class> class Function, class ElementD, class LayoutD, class ElementBias>
struct Act {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;
  template <class Descriptor>
  using FusionFor = cutlass::epilogue::fusion::LinCombPerRowBiasEltActAux<LayoutD, Function, ElementD, float, ElementD,
                                                                       ElementBias, void, float>;
  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const& stride_aux) {
    thread.alpha = p.alpha;
    thread.beta = 0.0f;
    thread.bias_ptr = static_cast<ElementBias const*>(p.bias);
    thread.aux_ptr = static_cast<ElementD*>(p.aux);
    thread.dAux = stride_aux;
  }
};

// D = (alpha acc) f'(Z), Z read as aux.
template <template <class> class Function, class ElementD, class LayoutD>
struct DAct {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;
  template <class Descriptor>
  using FusionFor =
      cutlass::epilogue::fusion::LinCombDeEltAct<LayoutD, Function, ElementD, float, ElementD, void, float>;
  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const& stride_aux) {
    thread.alpha = p.alpha;
    thread.beta = 0.0f;
    thread.aux_ptr = static_cast<ElementD const*>(p.aux);
    thread.dAux = stride_aux;
  }
};

}  // namespace s24
