// The derivative of the activation, and the sums of its rows: the gradient of the bias that the activation saw.
#pragma once

#include "activations.cuh"
#include "amax.cuh"

namespace s24 {

// D = acc f'(Z), Z read as aux, as `DAct`; and for each tile of D the fp32 sums over its columns, not yet rounded to D.
// p.bias is where they go: [tiles along N, M rounded up to whole tiles], M contiguous. Adding up the first dim is the
// caller's, which keeps the sum deterministic without counters or a second phase in here. With kAmax also the largest
// magnitude of dZ.
template <template <class> class Function, class ElementD, class LayoutD, bool kAmax = false>
struct DActSum {
  using Source = void;
  using Destination = ElementD;
  using Subtile = cutlass::epilogue::collective::EpilogueTileAuto;
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;

  template <class Descriptor>
  struct Tree {
    using In = cutlass::epilogue::collective::detail::AuxLoadDescriptor<Descriptor, LayoutD, ElementD>;
    using Load = cutlass::epilogue::fusion::Sm90AuxLoad<In::Stages, typename In::EpilogueTile, ElementD,
                                                        typename In::Stride, typename In::SmemLayoutAtom,
                                                        typename In::CopyOpS2R>;
    using Gradient = Observed<
        kAmax, Descriptor,
        cutlass::epilogue::fusion::Sm90EVT<cutlass::epilogue::fusion::Sm90Compute<Function, float, float, kRound>,
                                           cutlass::epilogue::fusion::Sm90AccFetch, Load>>;
    // No test for the edge: beyond M and N the accumulators are 0, and f' is finite.
    using Sums = cutlass::epilogue::fusion::Sm90ColReduction<
        cutlass::plus, cutlass::plus, cutlass::plus, 0, typename Descriptor::TileShape, float, float, kRound,
        cute::Stride<cute::_1, cute::_0, int64_t>, 4, /*EnableNullptr=*/false, /*FinalReduction=*/false,
        /*VisitCheckOOB=*/false>;
    using Type = cutlass::epilogue::fusion::Sm90EVT<Sums, typename Gradient::Type>;
  };
  template <class Descriptor>
  using FusionFor = typename Tree<Descriptor>::Type;

  template <class Thread, class StrideAux>
  static void fill(Thread& thread, Problem const& p, StrideAux const& stride_aux) {
    auto& gradient = observed<kAmax>(thread.op_0, p);
    gradient.op_1.ptr_aux = static_cast<ElementD const*>(p.aux);
    gradient.op_1.dAux = stride_aux;
    thread.op_1.ptr_col = const_cast<void*>(p.bias);
  }
};

}  // namespace s24
