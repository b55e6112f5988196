// C[m, n] = A[m, k] B[k, n] with A in our "sm80" format: CUTLASS 2.x's mma.sp kernel, of the tile that torch's own op has.
//
// An oracle for tests, not a kernel that anything trains with: torch's op refuses all but compute capability 8.x, this one
// runs on Hopper too. C is fp32, so that a bias can be added before it is rounded, as torch's epilogue does.
#include <cstdint>

#include <cuda_runtime.h>

#include "cutlass/cutlass.h"
#include "cutlass/epilogue/thread/linear_combination.h"
#include "cutlass/gemm/device/gemm_sparse.h"

namespace {

using Row = cutlass::layout::RowMajor;
using Col = cutlass::layout::ColumnMajor;

template <class Element, class LayoutB>
int run(void const* values, int64_t values_stride, void const* metadata, void const* b, int64_t b_stride, float* c,
        int m, int n, int k, cudaStream_t stream) {
  using Gemm = cutlass::gemm::device::SparseGemm<
      Element, Row, Element, LayoutB, float, Row, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
      cutlass::gemm::GemmShape<128, 128, 64>, cutlass::gemm::GemmShape<64, 64, 64>, cutlass::gemm::GemmShape<16, 8, 32>,
      cutlass::epilogue::thread::LinearCombination<float, 4, float, float>,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3>;
  auto codes = Gemm::LayoutE::packed({m, k / Gemm::kSparse / Gemm::kElementsPerElementE});
  typename Gemm::Arguments arguments(
      {m, n, k}, {static_cast<Element const*>(values), Row(values_stride)},
      {static_cast<Element const*>(b), LayoutB(b_stride)}, {c, Row(n)}, {c, Row(n)},
      {static_cast<typename Gemm::ElementE*>(const_cast<void*>(metadata)), codes}, {1.0f, 0.0f});
  Gemm gemm;
  if (auto status = Gemm::can_implement(arguments); status != cutlass::Status::kSuccess) return static_cast<int>(status);
  return static_cast<int>(gemm(arguments, nullptr, stream));
}

}  // namespace

// 0, or a cutlass::Status: what CUTLASS says that it cannot implement is what torch's op would refuse.
extern "C" int s24_sm80_gemm(int bf16, int b_by_rows, void const* values, int64_t values_stride, void const* metadata,
                             void const* b, int64_t b_stride, float* c, int m, int n, int k, void* stream) {
  auto queue = static_cast<cudaStream_t>(stream);
  auto call = [&](auto gemm) { return gemm(values, values_stride, metadata, b, b_stride, c, m, n, k, queue); };
  if (bf16) return b_by_rows ? call(run<cutlass::bfloat16_t, Row>) : call(run<cutlass::bfloat16_t, Col>);
  return b_by_rows ? call(run<cutlass::half_t, Row>) : call(run<cutlass::half_t, Col>);
}
