// AVX-512 registers (F, BW, VL, DQ), with VNNI and BF16 if the compiler may use them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

constexpr int kLanes = 16;
// Rows that share a load of weights, by the number of sixteens of outputs multiplied at once.
constexpr int kRowsByTwo = 8, kRowsByOne = 0;
constexpr int kPairRowsByTwo = 8, kPairRowsByOne = 0;
constexpr int kQuadRowsByTwo = 8, kQuadRowsByOne = 0;

// Sixteens of keys, and of a context, that several queries take at once in attention.
constexpr int kKeysByQueries = 2, kContextByQueries = 4;

using Register = __m512;
using IntRegister = __m512i;

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Register reg_splat(float x) { return _mm512_set1_ps(x); }
inline Register reg_load(const float* p) { return _mm512_loadu_ps(p); }
inline Register reg_load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Register reg_load_half(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline void reg_store(float* p, Register x) { _mm512_storeu_ps(p, x); }
inline void reg_store_first(float* p, Register x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
inline void reg_store_half(uint16_t* p, Register x) {
#if defined(__AVX512BF16__)
  const __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x400000));
  const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}

inline Register reg_add(Register a, Register b) { return _mm512_add_ps(a, b); }
inline Register reg_sub(Register a, Register b) { return _mm512_sub_ps(a, b); }
inline Register reg_mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
inline Register reg_div(Register a, Register b) { return _mm512_div_ps(a, b); }
inline Register reg_fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
inline Register reg_fnma(Register a, Register b, Register c) { return _mm512_fnmadd_ps(a, b, c); }
inline Register reg_min(Register a, Register b) { return _mm512_min_ps(a, b); }
inline Register reg_max(Register a, Register b) { return _mm512_max_ps(a, b); }
inline Register reg_abs(Register a) { return _mm512_abs_ps(a); }
inline Register reg_round(Register a) { return _mm512_roundscale_ps(a, 8); }
inline Register reg_scale(Register a, Register n) { return _mm512_scalef_ps(a, n); }
inline Register reg_where_negative(Register x, Register then, Register otherwise) {
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), then);
}
inline Register reg_first_of(int n, Register a, Register b) { return _mm512_mask_mov_ps(b, first_lanes(n), a); }
inline float reg_sum(Register x) { return _mm512_reduce_add_ps(x); }
inline float reg_largest(Register x) { return _mm512_reduce_max_ps(x); }
inline uint32_t reg_bits_of_nan(Register x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
inline uint32_t reg_bits_of_equal(Register a, Register b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

#if defined(__AVX512BF16__)
#define NASH_PRODUCTS_OF_PAIRS 1
using PairRegister = __m512i;
inline PairRegister reg_load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }
using Factor = uint16_t;
using FactorPair = __m512i;
inline FactorPair load_factor_pair(const Factor* two) {
  int32_t both;
  std::memcpy(&both, two, sizeof both);
  return _mm512_set1_epi32(both);
}
inline Register reg_add_pairs(Register sum, FactorPair two, PairRegister pairs) {
  return _mm512_dpbf16_ps(sum, (__m512bh)two, (__m512bh)pairs);
}
#else
// bfloat16 is the upper half of float32: the second of a pair is masked, the first is shifted.
#define NASH_PRODUCTS_OF_PAIRS 0
using Factor = float;
struct FactorPair {
  __m512 first, second;
};
struct PairRegister {
  __m512 first, second;
};
inline FactorPair load_factor_pair(const Factor* two) { return {_mm512_set1_ps(two[0]), _mm512_set1_ps(two[1])}; }
inline PairRegister reg_load_pairs(const uint16_t* p) {
  const __m512i pairs = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
}
inline Register reg_add_pairs(Register sum, FactorPair two, PairRegister pairs) {
  return _mm512_fmadd_ps(two.second, pairs.second, _mm512_fmadd_ps(two.first, pairs.first, sum));
}
#endif

inline IntRegister reg_load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline IntRegister reg_splat_int(int32_t x) { return _mm512_set1_epi32(x); }
inline Register reg_to_floats(IntRegister x) { return _mm512_cvtepi32_ps(x); }

#if defined(__AVX512VNNI__)
constexpr bool kUnsignedInputs = true;  // 128 is added; `offsets` subtract it again
using Quantized = uint8_t;
using QuantizedQuad = __m512i;
using QuadRegister = __m512i;
inline void reg_store_quantized(Quantized* p, Register x) {
  const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(128));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(q));
}
inline QuantizedQuad load_quantized_quad(const Quantized* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
inline QuadRegister reg_load_quads(const int8_t* p) { return _mm512_loadu_si512(p); }
inline IntRegister reg_add_quads(IntRegister sum, QuantizedQuad four, QuadRegister quads) {
  return _mm512_dpbusd_epi32(sum, four, quads);
}
#else
// vpmaddubsw saturates if two products exceed 16 bits, so both sides are widened to 16 bits first. A row's quads are
// stored in the order 0, 2, 1, 3: shifts then separate the even and the odd bytes of the weights.
constexpr bool kUnsignedInputs = false;
using Quantized = int16_t;
struct QuantizedQuad {
  __m512i even, odd;
};
struct QuadRegister {
  __m512i even, odd;
};
inline void reg_store_quantized(Quantized* p, Register x) {
  const __m256i q = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
  const __m256i swapped = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(q, 0xD8), 0xD8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), swapped);
}
inline QuantizedQuad load_quantized_quad(const Quantized* p) {
  int32_t even, odd;
  std::memcpy(&even, p, sizeof even);
  std::memcpy(&odd, p + 2, sizeof odd);
  return {_mm512_set1_epi32(even), _mm512_set1_epi32(odd)};
}
inline QuadRegister reg_load_quads(const int8_t* p) {
  const __m512i bytes = _mm512_loadu_si512(p);
  return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
}
inline IntRegister reg_add_quads(IntRegister sum, QuantizedQuad four, QuadRegister quads) {
  const __m512i even = _mm512_madd_epi16(four.even, quads.even), odd = _mm512_madd_epi16(four.odd, quads.odd);
  return _mm512_add_epi32(_mm512_add_epi32(sum, even), odd);
}
#endif

// int4 products. The instruction's unsigned side is the weights', so a row's bytes keep their sign.
constexpr int kInt4Rows = 8, kInt4Parts = 2;
inline Register reg_load_float16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void reg_store_bytes(int8_t* p, Register x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
using ByteQuad = IntRegister;
inline ByteQuad load_byte_quad(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
struct NibbleRegister {
  __m512i low, high;
};
inline NibbleRegister reg_load_nibbles(const uint8_t* p) {
  const __m512i bytes = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(0x0f);
  return {_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask)};
}
#if defined(__AVX512VNNI__)
struct GroupSum {
  __m512i all = _mm512_setzero_si512();
};
inline void reg_add_nibbles(GroupSum& sum, ByteQuad low_four, ByteQuad high_four, NibbleRegister nibbles) {
  sum.all = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum.all, nibbles.low, low_four), nibbles.high, high_four);
}
inline IntRegister reg_total(GroupSum sum) { return sum.all; }
#else
// vpmaddubsw never saturates here: the sixteen products of a group summed in 16 bits reach at most 16 * 15 * 127.
struct GroupSum {
  __m512i words = _mm512_setzero_si512();
};
inline void reg_add_nibbles(GroupSum& sum, ByteQuad low_four, ByteQuad high_four, NibbleRegister nibbles) {
  sum.words = _mm512_add_epi16(sum.words, _mm512_maddubs_epi16(nibbles.low, low_four));
  sum.words = _mm512_add_epi16(sum.words, _mm512_maddubs_epi16(nibbles.high, high_four));
}
inline IntRegister reg_total(GroupSum sum) { return _mm512_madd_epi16(sum.words, _mm512_set1_epi16(1)); }
#endif
inline IntRegister reg_add(IntRegister a, IntRegister b) { return _mm512_add_epi32(a, b); }
