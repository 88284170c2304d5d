// Sixteen numbers at a time, on any processor: one register with AVX-512, two with AVX2, four with NEON.
//
// The compiler's flags decide which registers there are. One library is built per instruction set, and the loader takes
// the best one that the processor runs. Code that includes this knows only `Floats`, `Ints` and their products.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__ARM_NEON)
#include "simd_neon.h"
#else
#error "no set of vector instructions that this operator knows"
#endif

#define NASH_INLINE inline __attribute__((always_inline))

constexpr int kNumbers = 16;                    // of a `Floats`, and of a block of keys in a cache
constexpr int kParts = kNumbers / kLanes;       // registers of a `Floats`

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// How many of the first sixteen of `n` numbers are in part `i`.
NASH_INLINE int in_part(int n, int i) { return n <= i * kLanes ? 0 : n >= (i + 1) * kLanes ? kLanes : n - i * kLanes; }

struct Floats {
  Register part[kParts];
};

// A whole of any kind, built part by part.
template <class Whole, class F>
NASH_INLINE Whole of_parts(F&& f) {
  Whole result;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) result.part[i] = f(i);
  return result;
}
template <class F>
NASH_INLINE Floats by_part(F&& f) {
  return of_parts<Floats>(f);
}

NASH_INLINE Floats splat(float x) {
  const Register all = reg_splat(x);
  return by_part([&](int) { return all; });
}
NASH_INLINE Floats zeros() { return splat(0.f); }
NASH_INLINE Floats load(const float* p) {
  return by_part([&](int i) { return reg_load(p + i * kLanes); });
}
NASH_INLINE Floats load(const uint16_t* p) {  // bfloat16
  return by_part([&](int i) { return reg_load_half(p + i * kLanes); });
}
// Only the first n are read or written; numbers that are not read are zero.
inline Floats load(const float* p, int n) {
  if (n >= kNumbers) return load(p);
  return by_part([&](int i) { return reg_load_first(p + i * kLanes, in_part(n, i)); });
}
inline Floats load(const uint16_t* p, int n) {
  if (n >= kNumbers) return load(p);
  uint16_t some[kNumbers] = {};
  std::memcpy(some, p, sizeof(uint16_t) * (n > 0 ? n : 0));
  return load(some);
}
NASH_INLINE void store(float* p, Floats x) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) reg_store(p + i * kLanes, x.part[i]);
}
inline void store(float* p, Floats x, int n) {
  if (n >= kNumbers) return store(p, x);
  for (int i = 0; i < kParts; i++) reg_store_first(p + i * kLanes, x.part[i], in_part(n, i));
}
NASH_INLINE void store_bfloat16(uint16_t* p, Floats x) {  // to the nearest, ties to even; NaN stays NaN
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) reg_store_half(p + i * kLanes, x.part[i]);
}

NASH_INLINE Floats operator+(Floats a, Floats b) {
  return by_part([&](int i) { return reg_add(a.part[i], b.part[i]); });
}
NASH_INLINE Floats operator-(Floats a, Floats b) {
  return by_part([&](int i) { return reg_sub(a.part[i], b.part[i]); });
}
NASH_INLINE Floats operator*(Floats a, Floats b) {
  return by_part([&](int i) { return reg_mul(a.part[i], b.part[i]); });
}
NASH_INLINE Floats operator/(Floats a, Floats b) {
  return by_part([&](int i) { return reg_div(a.part[i], b.part[i]); });
}
NASH_INLINE Floats fma(Floats a, Floats b, Floats c) {  // a * b + c, rounded once
  return by_part([&](int i) { return reg_fma(a.part[i], b.part[i], c.part[i]); });
}
NASH_INLINE Floats fnma(Floats a, Floats b, Floats c) {  // c - a * b, rounded once
  return by_part([&](int i) { return reg_fnma(a.part[i], b.part[i], c.part[i]); });
}
// Given a number and NaN, both return the second operand on x86, and NaN on ARM.
NASH_INLINE Floats lesser(Floats a, Floats b) {
  return by_part([&](int i) { return reg_min(a.part[i], b.part[i]); });
}
NASH_INLINE Floats greater(Floats a, Floats b) {
  return by_part([&](int i) { return reg_max(a.part[i], b.part[i]); });
}
NASH_INLINE Floats absolute(Floats a) {
  return by_part([&](int i) { return reg_abs(a.part[i]); });
}
NASH_INLINE Floats rounded(Floats a) {
  return by_part([&](int i) { return reg_round(a.part[i]); });
}
NASH_INLINE Floats times_power_of_two(Floats a, Floats n) {  // a * 2^n for whole n from -150 to 128
  return by_part([&](int i) { return reg_scale(a.part[i], n.part[i]); });
}
NASH_INLINE Floats where_negative(Floats x, Floats then, Floats otherwise) {
  return by_part([&](int i) { return reg_where_negative(x.part[i], then.part[i], otherwise.part[i]); });
}
// The first n from `a`, the rest from `b`.
NASH_INLINE Floats first_of(int n, Floats a, Floats b) {
  return by_part([&](int i) { return reg_first_of(in_part(n, i), a.part[i], b.part[i]); });
}

NASH_INLINE float sum(Floats x) {
  Register all = x.part[0];
#pragma GCC unroll 4
  for (int i = 1; i < kParts; i++) all = reg_add(all, x.part[i]);
  return reg_sum(all);
}
NASH_INLINE float largest(Floats x) {
  Register all = x.part[0];
#pragma GCC unroll 4
  for (int i = 1; i < kParts; i++) all = reg_max(all, x.part[i]);
  return reg_largest(all);
}
// One bit per number.
NASH_INLINE uint32_t bits_of_nan(Floats x) {
  uint32_t bits = 0;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) bits |= reg_bits_of_nan(x.part[i]) << (i * kLanes);
  return bits;
}
NASH_INLINE uint32_t bits_of_equal(Floats a, Floats b) {
  uint32_t bits = 0;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) bits |= reg_bits_of_equal(a.part[i], b.part[i]) << (i * kLanes);
  return bits;
}

// Products with bfloat16 in pairs: sum += first * pair's first + second * pair's second, for sixteen pairs side by
// side. `Factor` is the type of the other side: bfloat16 too if an instruction multiplies the pairs, float32 if they
// are widened.
NASH_INLINE void store_factors(Factor* p, Floats x) {
#if NASH_PRODUCTS_OF_PAIRS
  store_bfloat16(p, x);
#else
  store(p, x);
#endif
}
struct Pairs {
  PairRegister part[kParts];
};
NASH_INLINE Pairs load_pairs(const uint16_t* p) {
  return of_parts<Pairs>([&](int i) { return reg_load_pairs(p + 2 * i * kLanes); });
}
inline Pairs load_pairs(const uint16_t* p, int n) {
  if (n >= kNumbers) return load_pairs(p);
  uint16_t some[2 * kNumbers] = {};
  std::memcpy(some, p, 2 * sizeof(uint16_t) * (n > 0 ? n : 0));
  return load_pairs(some);
}
NASH_INLINE Floats add_pairs(Floats sum, FactorPair two, Pairs pairs) {
  return by_part([&](int i) { return reg_add_pairs(sum.part[i], two, pairs.part[i]); });
}

// Sixteen 32-bit integers: sums of int8 products.
struct Ints {
  IntRegister part[kParts];
};
NASH_INLINE Ints load(const int32_t* p) {
  return of_parts<Ints>([&](int i) { return reg_load(p + i * kLanes); });
}
NASH_INLINE Ints splat_int(int32_t x) {
  return of_parts<Ints>([&](int i) { return reg_splat_int(x); });
}
// Tell the compiler that these sums are read here. Otherwise GCC carries two copies of each through a loop, and spills
// those of four or more rows to the stack.
NASH_INLINE void keep_in_registers(Ints& x) {
#if defined(__x86_64__)
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) asm("" : "+v"(x.part[i]));
#else
  (void)x;
#endif
}
NASH_INLINE Floats to_floats(Ints x) {
  return by_part([&](int i) { return reg_to_floats(x.part[i]); });
}

// Products of int8 in quads: sum += the four products of an output, exactly, for sixteen outputs side by side.
// `Quantized` is a row's form: unsigned with 128 added if the instruction wants that, 16 bits if that is the narrowest
// exact product.
NASH_INLINE void store_quantized(Quantized* p, Floats x) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) reg_store_quantized(p + i * kLanes, x.part[i]);
}
struct Quads {
  QuadRegister part[kParts];
};
NASH_INLINE Quads load_quads(const int8_t* p) {
  return of_parts<Quads>([&](int i) { return reg_load_quads(p + 4 * i * kLanes); });
}
NASH_INLINE Ints add_quads(Ints sum, QuantizedQuad four, Quads quads) {
  return of_parts<Ints>([&](int i) { return reg_add_quads(sum.part[i], four, quads.part[i]); });
}

// A row's integers for int4 products: signed bytes on every processor.
NASH_INLINE void store_bytes(int8_t* p, Floats x) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; i++) reg_store_bytes(p + i * kLanes, x.part[i]);
}
