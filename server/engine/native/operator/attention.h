// Attention of single queries over cached keys and values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "abi.h"
#include "fetch.h"
#include "numbers.h"

// The index of a number in the cache of one slot and head.
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

// Store sixteen results of one head, from its number `e` on: as a key, or as a value.
inline void store_key(float* cache, int position, int e, int width, const Floats& result) {
  alignas(64) float lanes[kNumbers];
  store(lanes, result);
  float* place = cache + Layout<float>::key(position, e, width);
  for (int i = 0; i < kNumbers; i++) place[kNumbers * i] = lanes[i];
}
inline void store_key(uint16_t* cache, int position, int e, int width, const Floats& result) {
  alignas(32) uint16_t lanes[kNumbers];
  store_bfloat16(lanes, result);
  uint16_t* place = cache + Layout<uint16_t>::key(position, e, width);
  for (int i = 0; i < kNumbers / 2; i++) std::memcpy(place + 32 * i, lanes + 2 * i, 4);
}
inline void store_value(float* cache, int position, int e, int width, const Floats& result) {
  store(cache + Layout<float>::value(position, e, width), result);
}
inline void store_value(uint16_t* cache, int position, int e, int width, const Floats& result) {
  alignas(32) uint16_t lanes[kNumbers];
  store_bfloat16(lanes, result);
  uint16_t* place = cache + Layout<uint16_t>::value(position, e, width);
  if (position % 2 == 0) {
    // Until it exists, the other of a pair gets a weight of zero, and zero times NaN is NaN.
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
void cache_keys_values(const Attention& attention, int width, int slot, int position, int column, const Floats& result) {
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

// Products of Q queries with 16 * T keys from position `t` on. For bfloat16, queries come as factors. A score's sum is
// one chain over the head's width for any Q and T, so it does not depend on what is computed beside it.
template <int Q, int T>
NASH_INLINE void score(const float* const (&queries)[Q], const float* keys, int t, int width, Fetch& ahead,
                       Floats (&sum)[Q][T]) {
  const float* k = keys + static_cast<size_t>(t) * width;
  for (int e = 0; e < width; e++) {
#pragma GCC unroll 4
    for (int j = 0; j < T; j++) {
      const Floats sixteen = load(k + (static_cast<size_t>(j) * width + e) * kNumbers);
      if constexpr (Q == 1) fetch(ahead);
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) sum[q][j] = fma(splat(queries[q][e]), sixteen, sum[q][j]);
    }
  }
}
template <int Q, int T>
NASH_INLINE void score(const Factor* const (&queries)[Q], const uint16_t* keys, int t, int width, Fetch& ahead,
                       Floats (&sum)[Q][T]) {
  const int pairs = (width + 1) / 2;
  const uint16_t* k = keys + static_cast<size_t>(t) * 2 * pairs;
  for (int e = 0; e < pairs; e++) {
#pragma GCC unroll 4
    for (int j = 0; j < T; j++) {
      const Pairs sixteen = load_pairs(k + (static_cast<size_t>(j) * pairs + e) * 2 * kNumbers);
      if constexpr (Q == 1) fetch(ahead);
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) sum[q][j] = add_pairs(sum[q][j], load_factor_pair(queries[q] + 2 * e), sixteen);
    }
  }
}

// 16 * C numbers of the context of Q queries, from `e` on: values times weights. Nothing beyond `width` is read.
template <int Q, int C, bool Whole>
NASH_INLINE void weigh(const float* const (&weights)[Q], const float* values, int count, int width, int e, Fetch& ahead,
                       Floats (&sum)[Q][C]) {
  const float* v = values + e;
  for (int t = 0; t < count; t++, v += width) {
#pragma GCC unroll 4
    for (int j = 0; j < C; j++) {
      const int at = j * kNumbers;
      const Floats sixteen = Whole ? load(v + at) : load(v + at, std::max(width - e - at, 0));
      if constexpr (Q == 1) fetch(ahead);
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) sum[q][j] = fma(splat(weights[q][t]), sixteen, sum[q][j]);
    }
  }
}
template <int Q, int C, bool Whole>
NASH_INLINE void weigh(const Factor* const (&weights)[Q], const uint16_t* values, int count, int width, int e,
                       Fetch& ahead, Floats (&sum)[Q][C]) {
  const int stride = 2 * round_up(width, 2);
  const uint16_t* v = values + 2 * e;
  for (int t = 0; t < count; t += 2, v += stride) {
#pragma GCC unroll 4
    for (int j = 0; j < C; j++) {
      const int at = j * kNumbers;
      const Pairs sixteen = Whole ? load_pairs(v + 2 * at) : load_pairs(v + 2 * at, std::max(width - e - at, 0));
      if constexpr (Q == 1) fetch(ahead);
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) sum[q][j] = add_pairs(sum[q][j], load_factor_pair(weights[q] + t), sixteen);
    }
  }
}

// Queries that read the same keys and values: one, or kQueries of them.
struct Queries {
  const float* query;
  size_t stride;      // numbers from one query to the next, in `out` too
  const float* bias;  // null, or the first query's; each next one's begins one number earlier
  float* out;
};

// softmax(q K^T + bias) V over `count` keys of one head and slot. Each query has `room` numbers of `scores`: for count
// rounded up to 16, and behind them for the query itself if the cache is in bfloat16.
//
// A single query reads each key and value once, from memory: values are prefetched while keys are scored, and the
// following keys, at `next`, while values are weighed.
template <int Q, class T>
void attend(const Queries& queries, const T* keys, const T* values, const T* next, int count, int width, float* scores,
            int room) {
  using Form = std::conditional_t<std::is_same_v<T, float>, float, Factor>;
  constexpr int kKeys = Q == 1 ? 4 : kKeysByQueries;      // sixteens at once
  constexpr int kContext = Q == 1 ? 4 : kContextByQueries;
  const Form* form[Q];
  const Form* weights[Q];  // in place of the scores: a weight takes no more bytes than a score
  float* own[Q];
  Floats most[Q];
  const Floats nothing = splat(-std::numeric_limits<float>::infinity());
  for (int q = 0; q < Q; q++) {
    const float* query = queries.query + q * queries.stride;
    own[q] = scores + static_cast<size_t>(q) * room;
    weights[q] = reinterpret_cast<const Form*>(own[q]);
    most[q] = nothing;
    if constexpr (std::is_same_v<T, float>) {
      form[q] = query;
    } else {
      Factor* factors = reinterpret_cast<Factor*>(own[q] + room - round_up(width, kNumbers));
      for (int e = 0; e < width; e += kNumbers) store_factors(factors + e, load(query + e, width - e));
      form[q] = factors;
    }
  }
  const auto keep = [&](int q, int t, Floats sixteen) {
    if (queries.bias) sixteen = sixteen + load(queries.bias - q + t, count - t);
    sixteen = first_of(count - t, sixteen, nothing);
    most[q] = greater(most[q], sixteen);
    store(own[q] + t, sixteen);
  };
  Fetch ahead = {reinterpret_cast<const char*>(values), kLineBytes};
  int t = 0;
  for (; t + kKeys * kNumbers <= count; t += kKeys * kNumbers) {
    Floats sum[Q][kKeys];
    clear(sum);
    score(form, keys, t, width, ahead, sum);
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) {
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; j++) keep(q, t + j * kNumbers, sum[q][j]);
    }
  }
  for (; t < count; t += kNumbers) {
    Floats sum[Q][1];
    clear(sum);
    score(form, keys, t, width, ahead, sum);
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) keep(q, t, sum[q][0]);
  }
  Floats inverse[Q];
  for (int q = 0; q < Q; q++) {
    const Floats peak = splat(largest(most[q]));
    Floats total = zeros();
    Form* its_weights = reinterpret_cast<Form*>(own[q]);
    for (int i = 0; i < count; i += kNumbers) {
      Floats weight = first_of(count - i, exponential(load(own[q] + i) - peak), zeros());
      if constexpr (std::is_same_v<Form, float>) {
        store(its_weights + i, weight);
      } else {
        store_factors(its_weights + i, weight);
        weight = load(its_weights + i);  // so that the weights sum to one as stored
      }
      total = total + weight;
    }
    inverse[q] = splat(1.f / sum(total));
  }
  ahead.next = reinterpret_cast<const char*>(next);
  for (int e = 0; e < width; e += kContext * kNumbers) {
    Floats context[Q][kContext];
    clear(context);
    if (width - e >= kContext * kNumbers) {
      weigh<Q, kContext, true>(weights, values, count, width, e, ahead, context);
    } else {
      weigh<Q, kContext, false>(weights, values, count, width, e, ahead, context);
    }
    for (int q = 0; q < Q; q++) {
      float* out = queries.out + q * queries.stride + e;
      for (int j = 0; j < kContext && e + kNumbers * j < width; j++) {
        store(out + kNumbers * j, context[q][j] * inverse[q], width - e - kNumbers * j);
      }
    }
  }
}
