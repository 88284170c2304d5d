// Sixteen numbers at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "avx512.h"

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

inline __mmask16 tail(int n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << std::max(n, 0)) - 1); }

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const uint16_t* p, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}

// The first of the highest of n numbers, and its value: NaN where any of them is.
struct Highest {
  float value;
  int64_t at;
};
inline Highest highest(const float* p, int n) {
  __m512 most = _mm512_set1_ps(-INFINITY);
  __mmask16 unordered = 0;
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail(n - i);
    const __m512 v = load(p + i, mask);
    unordered |= _mm512_mask_cmp_ps_mask(mask, v, v, _CMP_UNORD_Q);
    most = _mm512_mask_max_ps(most, mask, most, v);
  }
  if (unordered) return {NAN, 0};
  const float value = _mm512_reduce_max_ps(most);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail(n - i);
    const __mmask16 equal = _mm512_mask_cmp_ps_mask(mask, load(p + i, mask), _mm512_set1_ps(value), _CMP_EQ_OQ);
    if (equal) return {value, i + __builtin_ctz(equal)};
  }
  return {value, 0};
}
inline void store_bfloat16(uint16_t* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
inline uint16_t to_bfloat16(float value) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e^x by 2^n * p(r); relative error below 2e-7 (the polynomial of Cephes' expf). NaN stays NaN.
inline __m512 exponential(__m512 x) {
  const __m512 low = _mm512_set1_ps(-104.f), high = _mm512_set1_ps(88.7f);
  x = _mm512_min_ps(high, _mm512_max_ps(low, x));  // of (limit, NaN) both give NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.f)));
  return _mm512_scalef_ps(p, n);
}
inline __m512 logistic(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}
// The normal distribution's function, by erf as in Abramowitz and Stegun 7.1.26; absolute error below 1e-7.
inline __m512 normal_cdf(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678118654752f));
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 square = _mm512_mul_ps(z, z);
  const __m512 upper = _mm512_mul_ps(_mm512_mul_ps(p, t), exponential(_mm512_sub_ps(_mm512_setzero_ps(), square)));
  const __m512 half_upper = _mm512_mul_ps(_mm512_set1_ps(0.5f), upper);
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(_mm512_sub_ps(one, half_upper), negative, half_upper);
}
inline __m512 activate(int32_t activation, __m512 x) {
  switch (activation) {
    case kRelu:  // max(x, 0) would make 0 of NaN with its operands the other way round
      return _mm512_max_ps(_mm512_setzero_ps(), x);
    case kGelu:
      return _mm512_mul_ps(x, normal_cdf(x));
    case kGeluTanh: {
      const __m512 cube = _mm512_mul_ps(x, _mm512_mul_ps(x, x));
      const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, x);
      return _mm512_mul_ps(x, logistic(_mm512_mul_ps(_mm512_set1_ps(1.5957691216057308f), inner)));
    }
    default:
      return _mm512_mul_ps(x, logistic(x));
  }
}
