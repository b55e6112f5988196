// Activations and their derivatives for the epilogues, fp32 in and out, in as few instructions as bf16 results need.
//
// An epilogue has about 5 instructions' time per element of D: with K = 768 the arithmetic of a tile takes 5400 cycles,
// and 30 instructions an element (erff, expf, a division) take as many. So GELU's normal tail is a power of two of a
// polynomial: one instruction of the special function unit and six multiply-adds. Coefficients are minimax fits
// (tests/kernels/test_activation_fits.py holds them against fp64): h is within 4e-5 + 2^-11 |h| of the exact value, and
// h' within 1.3e-4, where rounding to bf16 costs 2^-9. CUTLASS's own forms use the hardware's tanh (error 2^-11), which
// the cancellation of 1 + tanh(x) at negative x turns into whole per cents.
#pragma once

#include "cutlass/array.h"
#include "cutlass/cutlass.h"

namespace s24 {

using cutlass::Array;

CUTLASS_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// min(|z|, 5.5), and NaN for NaN: beyond it the tails are 0 to bf16.
CUTLASS_DEVICE float tail_argument(float z) {
  float t;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(t) : "f"(fabsf(z)), "f"(5.5f));
  return t;
}

CUTLASS_DEVICE float horner(float, float c) { return c; }
template <class... Rest>
CUTLASS_DEVICE float horner(float x, float c, Rest... rest) {
  return fmaf(horner(x, rest...), x, c);
}

CUTLASS_DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp2_fast(-1.4426950408889634f * x)); }

// What the backward pass of a gated layer needs of one z: f(z) and f'(z), sharing what they have in common.
struct Both {
  float value, slope;
};

CUTLASS_DEVICE float normal_density(float t) { return exp2_fast(fmaf(t * -0.72134752f, t, -1.32574806f)); }

// GELU by its tail: with t = |z|, gelu(z) = max(z, 0) - t Q(t), Q(t) = 1 - Phi(t) = 2^-tail(t), and
// gelu'(z) = s(t) for z < 0, 1 - s(t) otherwise, s(t) = Q(t) - t phi(t) = phi(t) slope(t).
struct Tails {
  float q, s;
};

template <class Fit>
struct Gelu {
  CUTLASS_DEVICE static float forward(float z) {
    float t = tail_argument(z);
    return fmaf(-t, exp2_fast(-Fit::tail(t)), fmaxf(z, 0.0f));
  }
  CUTLASS_DEVICE static float slope(float z) {
    float t = tail_argument(z);
    return 0.5f + copysignf(fmaf(-normal_density(t), Fit::slope(t), 0.5f), z);
  }
  CUTLASS_DEVICE static Both both(float z) {
    float t = tail_argument(z);
    Tails tails = Fit::tails(t);
    return {fmaf(-t, tails.q, fmaxf(z, 0.0f)), 0.5f + copysignf(0.5f - tails.s, z)};
  }
};

struct ErfFit {
  CUTLASS_DEVICE static float tail(float t) {
    return horner(t, 1.0001373291015625f, 1.1488982439041138f, 0.4648522138595581f, 0.04758351668715477f,
                  -0.005598981399089098f, 0.0002939064579550177f);
  }
  CUTLASS_DEVICE static float slope(float t) {
    return horner(t, 1.2530968476699098f, -1.9927580843238328f, 0.5873391504666499f, -0.2519092820380253f,
                  0.07046762592761696f, -0.011100018236791865f, 0.0007339999442935012f);
  }
  // Q = phi (slope + t): no second power.
  CUTLASS_DEVICE static Tails tails(float t) {
    float phi = normal_density(t);
    float s = phi * slope(t);
    return {fmaf(phi, t, s), s};
  }
};

struct TanhFit {
  CUTLASS_DEVICE static float tail(float t) {
    return horner(t, 1.0003496408462524f, 1.1458518505096436f, 0.4708678424358368f, 0.04594333842396736f,
                  -0.011435268446803093f, 0.0036870636977255344f, -0.00027105488697998226f);
  }
  CUTLASS_DEVICE static float slope(float t) {
    return horner(t, 1.2532057953980866f, -1.9957518074061917f, 0.59969041490395f, -0.2664083847969481f,
                  0.08356918393352025f, -0.0196128426322916f, 0.0026105372342798807f);
  }
  // Q is the sigmoid of -u, u = sqrt(8 / pi) (t + 0.044715 t^3), so s = Q (1 - (1 - Q) t u').
  CUTLASS_DEVICE static Tails tails(float t) {
    float q = exp2_fast(-tail(t));
    float tu = t * fmaf(0.21406574f, t * t, 1.5957691f);
    return {q, q * fmaf(q - 1.0f, tu, 1.0f)};
  }
};

using GeluErf = Gelu<ErfFit>;
using GeluTanh = Gelu<TanhFit>;

struct Silu {
  CUTLASS_DEVICE static float forward(float z) { return z * sigmoid(z); }
  CUTLASS_DEVICE static float slope(float z) {
    float s = sigmoid(z);
    return fmaf(fmaf(-z, s, z), s, s);
  }
  CUTLASS_DEVICE static Both both(float z) {
    float s = sigmoid(z);
    return {z * s, fmaf(fmaf(-z, s, z), s, s)};
  }
};

struct Relu {
  // Written so that NaN passes through, as torch's relu does.
  CUTLASS_DEVICE static float forward(float z) { return z < 0.0f ? 0.0f : z; }
  CUTLASS_DEVICE static float slope(float z) { return z > 0.0f ? 1.0f : 0.0f; }
  CUTLASS_DEVICE static Both both(float z) { return {forward(z), slope(z)}; }
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
