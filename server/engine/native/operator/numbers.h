// Functions on sixteen numbers, and the highest of many.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "simd.h"

template <int N, int S>
NASH_INLINE void clear(Floats (&sums)[N][S]) {
#pragma GCC unroll 8
  for (int r = 0; r < N; r++) {
#pragma GCC unroll 4
    for (int s = 0; s < S; s++) sums[r][s] = zeros();
  }
}

// The first of the highest of n numbers, and its value; NaN if any of them is.
struct Highest {
  float value;
  int64_t at;
};
inline Highest highest(const float* p, int n) {
  const int whole = n / kNumbers * kNumbers;
  Floats most = splat(-INFINITY);
  uint32_t nan = 0;
  for (int i = 0; i < whole; i += kNumbers) {
    const Floats v = load(p + i);
    nan |= bits_of_nan(v);
    most = greater(v, most);
  }
  float value = largest(most);
  for (int i = whole; i < n; i++) {
    nan |= std::isnan(p[i]);
    value = std::max(value, p[i]);
  }
  if (nan) return {NAN, 0};
  const Floats sought = splat(value);
  for (int i = 0; i < whole; i += kNumbers) {
    const uint32_t equal = bits_of_equal(load(p + i), sought);
    if (equal) return {value, i + __builtin_ctz(equal)};
  }
  int64_t at = whole;
  while (at + 1 < n && p[at] != value) at++;
  return {value, at};
}

inline uint16_t to_bfloat16(float value) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e^x as 2^n * p(r); relative error below 2e-7 (the polynomial of Cephes' expf). NaN stays NaN.
NASH_INLINE Floats exponential(Floats x) {
  x = lesser(splat(88.7f), greater(splat(-104.f), x));
  const Floats n = rounded(x * splat(1.44269504088896341f));
  Floats r = fnma(n, splat(0.693359375f), x);
  r = fnma(n, splat(-2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.f));
  return times_power_of_two(p, n);
}
NASH_INLINE Floats logistic(Floats x) {
  const Floats one = splat(1.f);
  return one / (one + exponential(zeros() - x));
}
// The normal distribution function, by erf as in Abramowitz and Stegun 7.1.26; absolute error below 1e-7.
NASH_INLINE Floats normal_cdf(Floats x) {
  const Floats one = splat(1.f);
  const Floats z = absolute(x) * splat(0.70710678118654752f);
  const Floats t = one / fma(z, splat(0.3275911f), one);
  Floats p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  const Floats upper = p * t * exponential(zeros() - z * z);
  const Floats half_upper = splat(0.5f) * upper;
  return where_negative(x, half_upper, one - half_upper);
}
// By reference: a call copies a Floats of two registers in halves, and reading it waits until both are written.
inline Floats activate_smoothly(int32_t activation, const Floats& x) {
  switch (activation) {
    case kGelu:
      return x * normal_cdf(x);
    case kGeluTanh: {
      const Floats cube = x * (x * x);
      return x * logistic(splat(1.5957691216057308f) * fma(splat(0.044715f), cube, x));
    }
    default:
      return x * logistic(x);
  }
}
NASH_INLINE Floats activate(int32_t activation, const Floats& x) {
  // With the operands swapped it would turn NaN into 0.
  return activation == kRelu ? greater(zeros(), x) : activate_smoothly(activation, x);
}
