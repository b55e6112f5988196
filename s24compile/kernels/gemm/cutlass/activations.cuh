// Activations and their derivatives for the epilogues, fp32 in and out.
//
// CUTLASS brings its own, but with the hardware's approximate tanh (relative error 2^-11, which the cancellation of
// 1 + tanh(x) at negative x turns into whole per cents) and without the derivatives of silu and tanh-gelu. Here every
// sigmoid comes from exp, so the error stays at a few ulp of fp32, far below the 2^-9 of a bf16 output.
#pragma once

#include "cutlass/array.h"
#include "cutlass/cutlass.h"

namespace s24 {

using cutlass::Array;

CUTLASS_DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Each function: forward f(z) and derivative f'(z).
struct GeluErf {
  CUTLASS_DEVICE static float forward(float z) { return 0.5f * z * (1.0f + erff(z * 0.70710678118654752f)); }
  CUTLASS_DEVICE static float slope(float z) {
    float cdf = 0.5f * (1.0f + erff(z * 0.70710678118654752f));
    return cdf + z * 0.39894228040143268f * __expf(-0.5f * z * z);
  }
};

struct GeluTanh {
  static constexpr float kTwice = 1.5957691216057308f;  // 2 sqrt(2 / pi): 0.5 (1 + tanh u) is sigmoid(2 u)
  static constexpr float kCubic = 0.044715f;
  CUTLASS_DEVICE static float forward(float z) { return z * sigmoid(kTwice * z * (1.0f + kCubic * z * z)); }
  CUTLASS_DEVICE static float slope(float z) {
    float s = sigmoid(kTwice * z * (1.0f + kCubic * z * z));
    return s + z * s * (1.0f - s) * kTwice * (1.0f + 3.0f * kCubic * z * z);
  }
};

struct Silu {
  CUTLASS_DEVICE static float forward(float z) { return z * sigmoid(z); }
  CUTLASS_DEVICE static float slope(float z) {
    float s = sigmoid(z);
    return s * (1.0f + z * (1.0f - s));
  }
};

struct Relu {
  // Written so that NaN passes through, as torch's relu does.
  CUTLASS_DEVICE static float forward(float z) { return z < 0.0f ? 0.0f : z; }
  CUTLASS_DEVICE static float slope(float z) { return z > 0.0f ? 1.0f : 0.0f; }
};

// The epilogue visitor tree calls Fn<float> and Fn<Array<float, N>>; these adapt a function to both.
template <class Function, class T>
struct Forward {
  CUTLASS_DEVICE T operator()(T const& z) const { return T(Function::forward(float(z))); }
};

template <class Function, class T, int N>
struct Forward<Function, Array<T, N>> {
  CUTLASS_DEVICE Array<T, N> operator()(Array<T, N> const& z) const {
    Array<T, N> h;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < N; ++i) {
      h[i] = T(Function::forward(float(z[i])));
    }
    return h;
  }
};

template <class Function, class T>
struct Backward {
  CUTLASS_DEVICE T operator()(T const& dh, T const& z) const { return T(float(dh) * Function::slope(float(z))); }
};

template <class Function, class T, int N>
struct Backward<Function, Array<T, N>> {
  CUTLASS_DEVICE Array<T, N> operator()(Array<T, N> const& dh, Array<T, N> const& z) const {
    Array<T, N> dz;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < N; ++i) {
      dz[i] = T(float(dh[i]) * Function::slope(float(z[i])));
    }
    return dz;
  }
};

// CUTLASS takes them as template <class> class.
template <class T> using gelu = Forward<GeluErf, T>;
template <class T> using gelu_tanh = Forward<GeluTanh, T>;
template <class T> using silu = Forward<Silu, T>;
template <class T> using relu = Forward<Relu, T>;
template <class T> using dgelu = Backward<GeluErf, T>;
template <class T> using dgelu_tanh = Backward<GeluTanh, T>;
template <class T> using dsilu = Backward<Silu, T>;
template <class T> using drelu = Backward<Relu, T>;

}  // namespace s24
