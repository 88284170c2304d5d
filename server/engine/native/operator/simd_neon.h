// NEON registers (AArch64), with dot products of int8 and bfloat16 if the compiler may use them.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

constexpr int kLanes = 4;
// Rows that share a load of weights, by the number of sixteens of outputs multiplied at once: thirty-two registers hold
// the sums, the weights and what they are multiplied by.
constexpr int kRowsByTwo = 2, kRowsByOne = 6;
constexpr int kPairRowsByTwo = 2, kPairRowsByOne = 5;
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int kQuadRowsByTwo = 2, kQuadRowsByOne = 6;
#else
constexpr int kQuadRowsByTwo = 1, kQuadRowsByOne = 4;
#endif

// Sixteens of keys, and of a context, that several queries take at once in attention.
constexpr int kKeysByQueries = 1, kContextByQueries = 1;

using Register = float32x4_t;
using IntRegister = int32x4_t;

inline uint32x4_t first_lanes(int n) {
  constexpr int32_t kOrder[4] = {0, 1, 2, 3};
  return vcltq_s32(vld1q_s32(kOrder), vdupq_n_s32(n));
}

inline Register reg_splat(float x) { return vdupq_n_f32(x); }
inline Register reg_load(const float* p) { return vld1q_f32(p); }
inline Register reg_load_first(const float* p, int n) {
  float some[4] = {};
  std::memcpy(some, p, sizeof(float) * n);
  return vld1q_f32(some);
}
inline Register reg_load_half(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline void reg_store(float* p, Register x) { vst1q_f32(p, x); }
inline void reg_store_first(float* p, Register x, int n) {
  float some[4];
  vst1q_f32(some, x);
  std::memcpy(p, some, sizeof(float) * n);
}
inline void reg_store_half(uint16_t* p, Register x) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  vst1_u16(p, vreinterpret_u16_bf16(vcvt_bf16_f32(x)));
#else
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t nearest = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t number = vceqq_f32(x, x);
  vst1_u16(p, vshrn_n_u32(vbslq_u32(number, nearest, vorrq_u32(bits, vdupq_n_u32(0x400000))), 16));
#endif
}

inline Register reg_add(Register a, Register b) { return vaddq_f32(a, b); }
inline Register reg_sub(Register a, Register b) { return vsubq_f32(a, b); }
inline Register reg_mul(Register a, Register b) { return vmulq_f32(a, b); }
inline Register reg_div(Register a, Register b) { return vdivq_f32(a, b); }
inline Register reg_fma(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
inline Register reg_fnma(Register a, Register b, Register c) { return vfmsq_f32(c, a, b); }
inline Register reg_min(Register a, Register b) { return vminq_f32(a, b); }
inline Register reg_max(Register a, Register b) { return vmaxq_f32(a, b); }
inline Register reg_abs(Register a) { return vabsq_f32(a); }
inline Register reg_round(Register a) { return vrndnq_f32(a); }
inline Register power_of_two(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
inline Register reg_scale(Register a, Register n) {  // in two steps, to reach results below 2^-126
  const int32x4_t whole = vcvtnq_s32_f32(n), half = vshrq_n_s32(whole, 1);
  return vmulq_f32(vmulq_f32(a, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
}
inline Register reg_where_negative(Register x, Register then, Register otherwise) {
  return vbslq_f32(vcltzq_f32(x), then, otherwise);
}
inline Register reg_first_of(int n, Register a, Register b) { return vbslq_f32(first_lanes(n), a, b); }
inline float reg_sum(Register x) { return vaddvq_f32(x); }
inline float reg_largest(Register x) { return vmaxvq_f32(x); }
inline uint32_t bits_of(uint32x4_t mask) {
  constexpr uint32_t kBits[4] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(mask, vld1q_u32(kBits)));
}
inline uint32_t reg_bits_of_nan(Register x) { return bits_of(vmvnq_u32(vceqq_f32(x, x))); }
inline uint32_t reg_bits_of_equal(Register a, Register b) { return bits_of(vceqq_f32(a, b)); }

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define NASH_PRODUCTS_OF_PAIRS 1
using Factor = uint16_t;
using FactorPair = bfloat16x8_t;
using PairRegister = bfloat16x8_t;
inline FactorPair load_factor_pair(const Factor* two) {
  uint32_t both;
  std::memcpy(&both, two, sizeof both);
  return vreinterpretq_bf16_u32(vdupq_n_u32(both));
}
inline PairRegister reg_load_pairs(const uint16_t* p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }
inline Register reg_add_pairs(Register sum, FactorPair two, PairRegister pairs) { return vbfdotq_f32(sum, two, pairs); }
#else
// bfloat16 is the upper half of float32: the second of a pair is masked, the first is shifted.
#define NASH_PRODUCTS_OF_PAIRS 0
using Factor = float;
struct FactorPair {
  float32x4_t first, second;
};
struct PairRegister {
  float32x4_t first, second;
};
inline FactorPair load_factor_pair(const Factor* two) { return {vdupq_n_f32(two[0]), vdupq_n_f32(two[1])}; }
inline PairRegister reg_load_pairs(const uint16_t* p) {
  const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p));
  return {vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)),
          vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000)))};
}
inline Register reg_add_pairs(Register sum, FactorPair two, PairRegister pairs) {
  return vfmaq_f32(vfmaq_f32(sum, two.first, pairs.first), two.second, pairs.second);
}
#endif

inline IntRegister reg_load(const int32_t* p) { return vld1q_s32(p); }
inline IntRegister reg_splat_int(int32_t x) { return vdupq_n_s32(x); }
inline Register reg_to_floats(IntRegister x) { return vcvtq_f32_s32(x); }

constexpr bool kUnsignedInputs = false;
using Quantized = int8_t;
using QuadRegister = int8x16_t;
inline void reg_store_quantized(Quantized* p, Register x) {
  const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(x));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
  vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(bytes), 0);
}
inline QuadRegister reg_load_quads(const int8_t* p) { return vld1q_s8(p); }
#if defined(__ARM_FEATURE_DOTPROD)
using QuantizedQuad = int8x16_t;
inline QuantizedQuad load_quantized_quad(const Quantized* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline IntRegister reg_add_quads(IntRegister sum, QuantizedQuad four, QuadRegister quads) {
  return vdotq_s32(sum, quads, four);
}
#else
using QuantizedQuad = int8x8_t;
inline QuantizedQuad load_quantized_quad(const Quantized* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return vreinterpret_s8_s32(vdup_n_s32(four));
}
inline IntRegister reg_add_quads(IntRegister sum, QuantizedQuad four, QuadRegister quads) {
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(quads), four));
  const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(quads), four));
  return vaddq_s32(sum, vpaddq_s32(low, high));
}
#endif

// int4 products: nibbles are small enough to count as signed bytes.
constexpr int kInt4Rows = 4, kInt4Parts = 1;
inline Register reg_load_float16(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
inline void reg_store_bytes(int8_t* p, Register x) {
  const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(x));
  vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
}
struct NibbleRegister {
  int8x16_t low, high;
};
inline NibbleRegister reg_load_nibbles(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  return {vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0x0f))), vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4))};
}
using ByteQuad = int8x16_t;
inline ByteQuad load_byte_quad(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
#if defined(__ARM_FEATURE_DOTPROD)
struct GroupSum {
  int32x4_t all = vdupq_n_s32(0);
};
inline void reg_add_nibbles(GroupSum& sum, ByteQuad low_four, ByteQuad high_four, NibbleRegister nibbles) {
  sum.all = vdotq_s32(vdotq_s32(sum.all, nibbles.low, low_four), nibbles.high, high_four);
}
inline IntRegister reg_total(GroupSum sum) { return sum.all; }
#else
// The eight products of a group summed in 16 bits reach at most 8 * 15 * 127.
struct GroupSum {
  int16x8_t first = vdupq_n_s16(0), second = vdupq_n_s16(0);  // of outputs 0 and 1, and of 2 and 3
};
inline void reg_add_nibbles(GroupSum& sum, ByteQuad low_four, ByteQuad high_four, NibbleRegister nibbles) {
  sum.first = vmlal_s8(sum.first, vget_low_s8(nibbles.low), vget_low_s8(low_four));
  sum.second = vmlal_high_s8(sum.second, nibbles.low, low_four);
  sum.first = vmlal_s8(sum.first, vget_low_s8(nibbles.high), vget_low_s8(high_four));
  sum.second = vmlal_high_s8(sum.second, nibbles.high, high_four);
}
inline IntRegister reg_total(GroupSum sum) { return vpaddq_s32(vpaddlq_s16(sum.first), vpaddlq_s16(sum.second)); }
#endif
inline IntRegister reg_add(IntRegister a, IntRegister b) { return vaddq_s32(a, b); }
