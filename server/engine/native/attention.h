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
    return (static_cast<int64_t>(position / kNumbers) * width + e) * kNumbers + position % kNumbers;
  }
  static int64_t value(int position, int e, int width) { return static_cast<int64_t>(position) * width + e; }
};
template <>
struct Layout<uint16_t> {
  static int64_t key(int position, int e, int width) {
    return (static_cast<int64_t>(position / kNumbers) * ((width + 1) / 2) + e / 2) * 32 + position % kNumbers * 2 + e % 2;
  }
  static int64_t value(int position, int e, int width) {
    return (static_cast<int64_t>(position / 2) * round_up(width, 2) + e) * 2 + position % 2;
  }
};

// Sixteen results that are one head's, from its number `e` on: a key, or a value.
inline void store_key(float* cache, int position, int e, int width, Floats result) {
  alignas(64) float lanes[kNumbers];
  store(lanes, result);
  float* place = cache + Layout<float>::key(position, e, width);
  for (int i = 0; i < kNumbers; i++) place[kNumbers * i] = lanes[i];
}
inline void store_key(uint16_t* cache, int position, int e, int width, Floats result) {
  alignas(32) uint16_t lanes[kNumbers];
  store_bfloat16(lanes, result);
  uint16_t* place = cache + Layout<uint16_t>::key(position, e, width);
  for (int i = 0; i < kNumbers / 2; i++) std::memcpy(place + 32 * i, lanes + 2 * i, 4);
}
inline void store_value(float* cache, int position, int e, int width, Floats result) {
  store(cache + Layout<float>::value(position, e, width), result);
}
inline void store_value(uint16_t* cache, int position, int e, int width, Floats result) {
  alignas(32) uint16_t lanes[kNumbers];
  store_bfloat16(lanes, result);
  uint16_t* place = cache + Layout<uint16_t>::value(position, e, width);
  if (position % 2 == 0) {
    // The other of a pair gets a weight of zero as long as it is not there, and zero times NaN is NaN.
    for (int i = 0; i < kNumbers; i++) {
      const uint32_t pair = lanes[i];
      std::memcpy(place + 2 * i, &pair, 4);
    }
  } else {
    for (int i = 0; i < kNumbers; i++) place[2 * i] = lanes[i];
  }
}

// Put sixteen results of a key and value projection into a slot; `column` counts keys first, then values.
template <class T>
void cache_keys_values(const Attention& attention, int width, int slot, int position, int column, Floats result) {
  const int inner = attention.heads * width, end = std::min(column + kNumbers, 2 * inner);
  T* const keys = static_cast<T*>(attention.keys) + slot * attention.slot_stride;
  T* const values = static_cast<T*>(attention.values) + slot * attention.slot_stride;
  if (width % kNumbers == 0) {  // all of one head
    const int place = column < inner ? column : column - inner;
    const int64_t head = place / width * attention.head_stride;
    if (column < inner) {
      store_key(keys + head, position, place % width, width, result);
    } else {
      store_value(values + head, position, place % width, width, result);
    }
    return;
  }
  alignas(64) T lanes[kNumbers];
  if constexpr (std::is_same_v<T, float>) {
    store(lanes, result);
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

// Scores of sixteen keys from position `t` on, without their bias. Of bfloat16, the query comes as factors.
NASH_INLINE Floats score(const float* query, const float* keys, int t, int width) {
  const float* k = keys + static_cast<size_t>(t) * width;
  Floats sum[4] = {zeros(), zeros(), zeros(), zeros()};
  int e = 0;
  for (; e + 4 <= width; e += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sum[j] = fma(splat(query[e + j]), load(k + (e + j) * kNumbers), sum[j]);
  }
  for (; e < width; e++) sum[0] = fma(splat(query[e]), load(k + e * kNumbers), sum[0]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
NASH_INLINE Floats score(const Factor* query, const uint16_t* keys, int t, int width) {
  const int pairs = (width + 1) / 2;
  const uint16_t* k = keys + static_cast<size_t>(t) * 2 * pairs;
  Floats sum[4] = {zeros(), zeros(), zeros(), zeros()};
  int e = 0;
  for (; e + 4 <= pairs; e += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      sum[j] = add_pairs(sum[j], load_factor_pair(query + 2 * (e + j)), load_pairs(k + 32 * (e + j)));
    }
  }
  for (; e < pairs; e++) sum[0] = add_pairs(sum[0], load_factor_pair(query + 2 * e), load_pairs(k + 32 * e));
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Up to four sixteens of the context: the values from `e` on, weighted; what lies beyond `width` is zero.
template <bool Whole>
NASH_INLINE void weigh(const float* weights, const float* values, int count, int width, int e, Floats (&sum)[4]) {
  const float* v = values + e;
  for (int t = 0; t < count; t++, v += width) {
    const Floats weight = splat(weights[t]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const int at = j * kNumbers;
      sum[j] = fma(weight, Whole ? load(v + at) : load(v + at, std::max(width - e - at, 0)), sum[j]);
    }
  }
}
template <bool Whole>
NASH_INLINE void weigh(const Factor* weights, const uint16_t* values, int count, int width, int e, Floats (&sum)[4]) {
  const int stride = 2 * round_up(width, 2);
  const uint16_t* v = values + 2 * e;
  for (int t = 0; t < count; t += 2, v += stride) {
    const FactorPair two = load_factor_pair(weights + t);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const int at = j * kNumbers;
      sum[j] = add_pairs(sum[j], two, Whole ? load_pairs(v + 2 * at) : load_pairs(v + 2 * at, std::max(width - e - at, 0)));
    }
  }
}

// softmax(q K^T + bias) V over `count` keys of one head and slot. `scores` has room for count rounded up to 16, and
// `factors` for the query where the cache is in bfloat16.
template <class T>
void attend(const float* query, const T* keys, const T* values, int count, int width, const float* bias, float* scores,
            Factor* factors, float* out) {
  using Form = std::conditional_t<std::is_same_v<T, float>, float, Factor>;
  const Form* form;
  if constexpr (std::is_same_v<T, float>) {
    form = query;
  } else {
    for (int e = 0; e < width; e += kNumbers) store_factors(factors + e, load(query + e, width - e));
    form = factors;
  }
  const Floats nothing = splat(-std::numeric_limits<float>::infinity());
  Floats most = nothing;
  for (int t = 0; t < count; t += kNumbers) {
    Floats sixteen = score(form, keys, t, width);
    if (bias) sixteen = sixteen + load(bias + t, count - t);
    sixteen = first_of(count - t, sixteen, nothing);
    most = greater(most, sixteen);
    store(scores + t, sixteen);
  }
  const Floats peak = splat(largest(most));
  Floats total = zeros();
  Form* weights = reinterpret_cast<Form*>(scores);  // in their place: a weight is never larger than a score
  for (int t = 0; t < count; t += kNumbers) {
    Floats weight = first_of(count - t, exponential(load(scores + t) - peak), zeros());
    if constexpr (std::is_same_v<Form, float>) {
      store(weights + t, weight);
    } else {
      store_factors(weights + t, weight);
      weight = load(weights + t);  // so that the weights sum to one as they are
    }
    total = total + weight;
  }
  const Floats inverse = splat(1.f / sum(total));
  for (int e = 0; e < width; e += 4 * kNumbers) {
    Floats context[4] = {zeros(), zeros(), zeros(), zeros()};
    if (width - e >= 4 * kNumbers) {
      weigh<true>(weights, values, count, width, e, context);
    } else {
      weigh<false>(weights, values, count, width, e, context);
    }
    for (int j = 0; j < 4 && e + kNumbers * j < width; j++) {
      store(out + e + kNumbers * j, context[j] * inverse, width - e - kNumbers * j);
    }
  }
}
