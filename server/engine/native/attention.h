// Attention of single queries over cached keys and values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "abi.h"
#include "numbers.h"

// Where a number stands in the cache of one slot and head.
template <class T>
struct Layout;
template <>
struct Layout<float> {
  static int64_t key(int position, int e, int width) {
    return (static_cast<int64_t>(position / 16) * width + e) * 16 + position % 16;
  }
  static int64_t value(int position, int e, int width) { return static_cast<int64_t>(position) * width + e; }
};
template <>
struct Layout<uint16_t> {
  static int64_t key(int position, int e, int width) {
    return (static_cast<int64_t>(position / 16) * ((width + 1) / 2) + e / 2) * 32 + position % 16 * 2 + e % 2;
  }
  static int64_t value(int position, int e, int width) {
    return (static_cast<int64_t>(position / 2) * round_up(width, 2) + e) * 2 + position % 2;
  }
};

// Sixteen results that are one head's, from its number `e` on: a key, or a value.
inline void store_key(float* cache, int position, int e, int width, __m512 result) {
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, result);
  float* place = cache + Layout<float>::key(position, e, width);
  for (int i = 0; i < 16; i++) place[16 * i] = lanes[i];
}
inline void store_key(uint16_t* cache, int position, int e, int width, __m512 result) {
  alignas(32) uint32_t pairs[8];
  store_bfloat16(reinterpret_cast<uint16_t*>(pairs), result);
  uint16_t* place = cache + Layout<uint16_t>::key(position, e, width);
  for (int i = 0; i < 8; i++) std::memcpy(place + 32 * i, pairs + i, 4);
}
inline void store_value(float* cache, int position, int e, int width, __m512 result) {
  _mm512_storeu_ps(cache + Layout<float>::value(position, e, width), result);
}
inline void store_value(uint16_t* cache, int position, int e, int width, __m512 result) {
  alignas(32) uint16_t lanes[16];
  store_bfloat16(lanes, result);
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(lanes)));
  uint16_t* place = cache + Layout<uint16_t>::value(position & ~1, e, width);
  if (position % 2 == 0) {
    // The other of a pair gets a weight of zero as long as it is not there, and zero times NaN is NaN.
    _mm512_storeu_si512(place, wide);
  } else {
    _mm512_mask_storeu_epi16(place, 0xAAAAAAAA, _mm512_slli_epi32(wide, 16));
  }
}

// Put sixteen results of a key and value projection into a slot; `column` counts keys first, then values.
template <class T>
void cache_keys_values(const Attention& attention, int width, int slot, int position, int column, __m512 result) {
  const int inner = attention.heads * width, end = std::min(column + 16, 2 * inner);
  T* const keys = static_cast<T*>(attention.keys) + slot * attention.slot_stride;
  T* const values = static_cast<T*>(attention.values) + slot * attention.slot_stride;
  if (width % 16 == 0) {  // all of one head
    const int place = column < inner ? column : column - inner;
    const int64_t head = place / width * attention.head_stride;
    if (column < inner) {
      store_key(keys + head, position, place % width, width, result);
    } else {
      store_value(values + head, position, place % width, width, result);
    }
    return;
  }
  alignas(64) T lanes[16];
  if constexpr (std::is_same_v<T, float>) {
    _mm512_store_ps(lanes, result);
  } else {
    store_bfloat16(lanes, result);
  }
  int head = column % inner / width, e = column % width;
  for (int c = column; c < end; c++) {
    const int64_t base = head * attention.head_stride;
    if (c < inner) {
      keys[base + Layout<T>::key(position, e, width)] = lanes[c - column];
    } else {
      T* place = values + base + Layout<T>::value(position, e, width);
      *place = lanes[c - column];
      if (std::is_same_v<T, uint16_t> && position % 2 == 0) place[1] = 0;  // as in store_value
    }
    if (++e == width) {
      e = 0;
      head = head + 1 == attention.heads ? 0 : head + 1;
    }
  }
}

// Scores of sixteen keys from position `t` on, without their bias. A query in bfloat16 comes as pairs.
inline __m512 score(const float* query, const float* keys, int t, int width) {
  const float* k = keys + static_cast<size_t>(t) * width;
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  int e = 0;
  for (; e + 4 <= width; e += 4) {
    for (int j = 0; j < 4; j++) sum[j] = _mm512_fmadd_ps(_mm512_set1_ps(query[e + j]), load(k + (e + j) * 16), sum[j]);
  }
  for (; e < width; e++) sum[0] = _mm512_fmadd_ps(_mm512_set1_ps(query[e]), load(k + e * 16), sum[0]);
  return _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
}
inline __m512 score(const uint16_t* query, const uint16_t* keys, int t, int width) {
  const int pairs = (width + 1) / 2;
  const uint16_t* k = keys + static_cast<size_t>(t) * 2 * pairs;
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int e = 0; e < pairs; e++) {
    int32_t two;
    std::memcpy(&two, query + 2 * e, 4);
    sum[e % 4] = _mm512_dpbf16_ps(sum[e % 4], (__m512bh)_mm512_set1_epi32(two), (__m512bh)_mm512_loadu_si512(k + 32 * e));
  }
  return _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
}

// Up to 4 * 16 numbers of the context: the values from `e` on, weighted; registers beyond `width` are not written.
inline void weigh(const float* weights, const float* values, int count, int width, int e, __m512 (&sum)[4]) {
  const __mmask16 mask[4] = {tail(width - e), tail(width - e - 16), tail(width - e - 32), tail(width - e - 48)};
  const float* v = values + e;
  for (int t = 0; t < count; t++, v += width) {
    const __m512 weight = _mm512_set1_ps(weights[t]);
    for (int j = 0; j < 4; j++) sum[j] = _mm512_fmadd_ps(weight, load(v + 16 * j, mask[j]), sum[j]);
  }
}
inline void weigh(const uint16_t* weights, const uint16_t* values, int count, int width, int e, __m512 (&sum)[4]) {
  const __mmask16 mask[4] = {tail(width - e), tail(width - e - 16), tail(width - e - 32), tail(width - e - 48)};
  const int stride = 2 * round_up(width, 2);
  const uint16_t* v = values + 2 * e;
  for (int t = 0; t < count; t += 2, v += stride) {
    int32_t two;
    std::memcpy(&two, weights + t, 4);
    const __m512bh weight = (__m512bh)_mm512_set1_epi32(two);
    for (int j = 0; j < 4; j++) {
      sum[j] = _mm512_dpbf16_ps(sum[j], weight, (__m512bh)_mm512_maskz_loadu_epi32(mask[j], v + 32 * j));
    }
  }
}

// softmax(q K^T + bias) V over `count` keys of one head and slot. `scores` has room for count rounded up to 16, and
// from `pairs` on for the query in bfloat16.
template <class T>
void attend(const float* query, const T* keys, const T* values, int count, int width, const float* bias, float* scores,
            uint16_t* pairs, float* out) {
  const T* form;
  if constexpr (std::is_same_v<T, float>) {
    form = query;
  } else {
    for (int e = 0; e < width; e += 16) store_bfloat16(pairs + e, load(query + e, tail(width - e)));
    form = pairs;
  }
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 largest = nothing;
  for (int t = 0; t < count; t += 16) {
    __m512 sixteen = score(form, keys, t, width);
    if (bias) sixteen = _mm512_add_ps(sixteen, load(bias + t, tail(count - t)));
    sixteen = _mm512_mask_mov_ps(nothing, tail(count - t), sixteen);
    largest = _mm512_max_ps(largest, sixteen);
    _mm512_storeu_ps(scores + t, sixteen);
  }
  const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 total = _mm512_setzero_ps();
  T* weights = reinterpret_cast<T*>(scores);  // in their place: a weight is never larger than a score
  for (int t = 0; t < count; t += 16) {
    __m512 weight = _mm512_maskz_mov_ps(tail(count - t), exponential(_mm512_sub_ps(load(scores + t), peak)));
    if constexpr (std::is_same_v<T, float>) {
      _mm512_storeu_ps(weights + t, weight);
    } else {
      store_bfloat16(weights + t, weight);
      weight = load(weights + t);  // so that the weights sum to one as they are
    }
    total = _mm512_add_ps(total, weight);
  }
  const __m512 inverse = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(total));
  for (int e = 0; e < width; e += 64) {
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    weigh(weights, values, count, width, e, sum);
    for (int j = 0; j < 4 && e + 16 * j < width; j++) {
      _mm512_mask_storeu_ps(out + e + 16 * j, tail(width - e - 16 * j), _mm512_mul_ps(sum[j], inverse));
    }
  }
}
