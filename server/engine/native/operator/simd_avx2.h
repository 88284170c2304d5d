// AVX2 registers with FMA, and with AVX-VNNI if the compiler may use it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

constexpr int kLanes = 8;
// Rows that share a load of weights, by the number of sixteens of outputs multiplied at once: sixteen registers hold
// the sums, the weights and what they are multiplied by.
constexpr int kRowsByTwo = 3, kRowsByOne = 6;
constexpr int kPairRowsByTwo = 2, kPairRowsByOne = 4;
constexpr int kQuadRowsByTwo = 2, kQuadRowsByOne = 4;

// Sixteens of keys, and of a context, that several queries take at once in attention.
constexpr int kKeysByQueries = 1, kContextByQueries = 1;

using Register = __m256;
using IntRegister = __m256i;

alignas(32) constexpr int32_t kFirstLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
inline __m256i first_lanes(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes + kLanes - n));
}

inline Register reg_splat(float x) { return _mm256_set1_ps(x); }
inline Register reg_load(const float* p) { return _mm256_loadu_ps(p); }
inline Register reg_load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline Register reg_load_half(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline void reg_store(float* p, Register x) { _mm256_storeu_ps(p, x); }
inline void reg_store_first(float* p, Register x, int n) { _mm256_maskstore_ps(p, first_lanes(n), x); }
inline void reg_store_half(uint16_t* p, Register x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(nearest, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(kept, kept), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

inline Register reg_add(Register a, Register b) { return _mm256_add_ps(a, b); }
inline Register reg_sub(Register a, Register b) { return _mm256_sub_ps(a, b); }
inline Register reg_mul(Register a, Register b) { return _mm256_mul_ps(a, b); }
inline Register reg_div(Register a, Register b) { return _mm256_div_ps(a, b); }
inline Register reg_fma(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
inline Register reg_fnma(Register a, Register b, Register c) { return _mm256_fnmadd_ps(a, b, c); }
inline Register reg_min(Register a, Register b) { return _mm256_min_ps(a, b); }
inline Register reg_max(Register a, Register b) { return _mm256_max_ps(a, b); }
inline Register reg_abs(Register a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
inline Register reg_round(Register a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Register power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
inline Register reg_scale(Register a, Register n) {  // in two steps, to reach results below 2^-126
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}
inline Register reg_where_negative(Register x, Register then, Register otherwise) {
  return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
inline Register reg_first_of(int n, Register a, Register b) {
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(first_lanes(n)));
}
inline float reg_sum(Register x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reg_largest(Register x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline uint32_t reg_bits_of_nan(Register x) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
inline uint32_t reg_bits_of_equal(Register a, Register b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
}

// bfloat16 is the upper half of float32: the second of a pair is masked, the first is shifted.
#define NASH_PRODUCTS_OF_PAIRS 0
using Factor = float;
struct FactorPair {
  __m256 first, second;
};
struct PairRegister {
  __m256 first, second;
};
inline FactorPair load_factor_pair(const Factor* two) { return {_mm256_set1_ps(two[0]), _mm256_set1_ps(two[1])}; }
inline PairRegister reg_load_pairs(const uint16_t* p) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)))};
}
inline Register reg_add_pairs(Register sum, FactorPair two, PairRegister pairs) {
  return _mm256_fmadd_ps(two.second, pairs.second, _mm256_fmadd_ps(two.first, pairs.first, sum));
}

inline IntRegister reg_load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline IntRegister reg_splat_int(int32_t x) { return _mm256_set1_epi32(x); }
inline Register reg_to_floats(IntRegister x) { return _mm256_cvtepi32_ps(x); }

#if defined(__AVXVNNI__)
constexpr bool kUnsignedInputs = true;  // 128 is added; `offsets` subtract it again
using Quantized = uint8_t;
using QuantizedQuad = __m256i;
using QuadRegister = __m256i;
inline void reg_store_quantized(Quantized* p, Register x) {
  const __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(128));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(q, q), 0x08);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(_mm256_castsi256_si128(words), _mm_setzero_si128()));
}
inline QuantizedQuad load_quantized_quad(const Quantized* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
inline QuadRegister reg_load_quads(const int8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline IntRegister reg_add_quads(IntRegister sum, QuantizedQuad four, QuadRegister quads) {
  return _mm256_dpbusd_avx_epi32(sum, four, quads);
}
#else
// vpmaddubsw saturates if two products exceed 16 bits, so both sides are widened to 16 bits first. A row's quads are
// stored in the order 0, 2, 1, 3: shifts then separate the even and the odd bytes of the weights.
constexpr bool kUnsignedInputs = false;
using Quantized = int16_t;
struct QuantizedQuad {
  __m256i even, odd;
};
struct QuadRegister {
  __m256i even, odd;
};
inline void reg_store_quantized(Quantized* p, Register x) {
  const __m256i q = _mm256_cvtps_epi32(x);
  const __m128i words = _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packs_epi32(q, q), 0x08));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_shufflehi_epi16(_mm_shufflelo_epi16(words, 0xD8), 0xD8));
}
inline QuantizedQuad load_quantized_quad(const Quantized* p) {
  int32_t even, odd;
  std::memcpy(&even, p, sizeof even);
  std::memcpy(&odd, p + 2, sizeof odd);
  return {_mm256_set1_epi32(even), _mm256_set1_epi32(odd)};
}
inline QuadRegister reg_load_quads(const int8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
inline IntRegister reg_add_quads(IntRegister sum, QuantizedQuad four, QuadRegister quads) {
  const __m256i even = _mm256_madd_epi16(four.even, quads.even), odd = _mm256_madd_epi16(four.odd, quads.odd);
  return _mm256_add_epi32(_mm256_add_epi32(sum, even), odd);
}
#endif

// int4 products. The instruction's unsigned side is the weights', so a row's bytes keep their sign.
constexpr int kInt4Rows = 4, kInt4Parts = 1;
inline Register reg_load_float16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void reg_store_bytes(int8_t* p, Register x) {
  const __m256i q = _mm256_cvtps_epi32(x);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
using ByteQuad = IntRegister;
inline ByteQuad load_byte_quad(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
struct NibbleRegister {
  __m256i low, high;
};
inline NibbleRegister reg_load_nibbles(const uint8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask)};
}
#if defined(__AVXVNNI__)
struct GroupSum {
  __m256i all = _mm256_setzero_si256();
};
inline void reg_add_nibbles(GroupSum& sum, ByteQuad low_four, ByteQuad high_four, NibbleRegister nibbles) {
  sum.all = _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum.all, nibbles.low, low_four), nibbles.high, high_four);
}
inline IntRegister reg_total(GroupSum sum) { return sum.all; }
#else
// vpmaddubsw never saturates here: the sixteen products of a group summed in 16 bits reach at most 16 * 15 * 127.
struct GroupSum {
  __m256i words = _mm256_setzero_si256();
};
inline void reg_add_nibbles(GroupSum& sum, ByteQuad low_four, ByteQuad high_four, NibbleRegister nibbles) {
  sum.words = _mm256_add_epi16(sum.words, _mm256_maddubs_epi16(nibbles.low, low_four));
  sum.words = _mm256_add_epi16(sum.words, _mm256_maddubs_epi16(nibbles.high, high_four));
}
inline IntRegister reg_total(GroupSum sum) { return _mm256_madd_epi16(sum.words, _mm256_set1_epi16(1)); }
#endif
inline IntRegister reg_add(IntRegister a, IntRegister b) { return _mm256_add_epi32(a, b); }
