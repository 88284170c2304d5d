// Norms, and products of a few rows with packed weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "abi.h"
#include "fetch.h"
#include "numbers.h"
#include "share.h"

constexpr int kTile = 2 * kNumbers;  // outputs of a tile
constexpr int kBlock = 8;            // rows of a block, if rows are divided among threads

// int4: inputs of an output that share a scale, and the bytes of a tile's group: its scales, then two weights per byte.
constexpr int kGroup = 32;
constexpr int kScaleBytes = 2 * kTile, kGroupBytes = kScaleBytes + kTile * kGroup / 2;
inline int groups_of(const Matrix& m) { return (m.inputs + kGroup - 1) / kGroup; }

struct Moments {
  float mean, factor;  // a normed value is (x - mean) * factor
};

inline Moments moments(const Stack& stack, const float* x) {
  const int n = stack.width;
  float mean = 0;
  if (stack.layer_norm) {
    Floats all = zeros();
    for (int i = 0; i < n; i += kNumbers) all = all + load(x + i, n - i);
    mean = sum(all) / static_cast<float>(n);
  }
  const Floats center = splat(mean);
  Floats squares = zeros();
  for (int i = 0; i < n; i += kNumbers) {
    const Floats v = first_of(n - i, load(x + i, n - i) - center, zeros());
    squares = fma(v, v, squares);
  }
  return {mean, 1.f / std::sqrt(sum(squares) / static_cast<float>(n) + stack.eps)};
}

inline void norm_in_place(const Stack& stack, const Norm& norm, float* x) {
  const Moments m = moments(stack, x);
  const Floats mean = splat(m.mean), factor = splat(m.factor);
  for (int i = 0; i < stack.width; i += kNumbers) {
    const int n = stack.width - i;
    const Floats shift = norm.shift ? load(norm.shift + i, n) : zeros();
    store(x + i, fma((load(x + i, n) - mean) * factor, load(norm.gain + i, n), shift), n);
  }
}

inline int tiles(const Matrix& m) { return round_up(m.outputs, kTile) / kTile; }

inline size_t input_stride(const Matrix& m) {  // bytes
  if (m.dtype == kInt4) return static_cast<size_t>(round_up(groups_of(m) * (kGroup + 4), 64));
  const size_t size = m.dtype == kInt8 ? sizeof(Quantized) : m.dtype == kBFloat16 ? sizeof(Factor) : sizeof(float);
  return static_cast<size_t>(round_up(static_cast<int>(m.inputs * size), 64));
}

// Rows in the form that a matrix takes.
struct Inputs {
  const uint8_t* data;
  size_t stride;
  const float* scales;
};

// A row for int4: the integers, group by group, then each group's correction, which removes from its products the 8
// that is added to all its weights. Numbers beyond the last input are zero.
inline void store_groups(const Matrix& m, const float* x, Floats mean, Floats inverse, uint8_t* out) {
  const int n = m.inputs, groups = groups_of(m);
  int8_t* bytes = reinterpret_cast<int8_t*>(out);
  int32_t* corrections = reinterpret_cast<int32_t*>(out + groups * kGroup);
  for (int g = 0; g < groups; g++) {
    Floats all = zeros();
    for (int i = g * kGroup; i < (g + 1) * kGroup; i += kNumbers) {
      const int left = std::max(n - i, 0);
      const Floats v = rounded(first_of(left, load(x + i, left) - mean, zeros()) * inverse);
      store_bytes(bytes + i, v);
      all = all + v;
    }
    const float total = sum(all);
    corrections[g] = std::isfinite(total) ? -8 * static_cast<int32_t>(total) : 0;
  }
}

// Write (x - mean) * factor as inputs of a matrix. Values beyond the last input are zero.
inline void convert(const Matrix& m, const float* x, Moments moments, uint8_t* out, float* scale) {
  const int n = m.inputs;
  const Floats mean = splat(moments.mean);
  if (m.dtype != kInt8 && m.dtype != kInt4) {
    const Floats factor = splat(moments.factor);
    for (int i = 0; i < n; i += kNumbers) {
      const Floats v = first_of(n - i, (load(x + i, n - i) - mean) * factor, zeros());
      if (m.dtype == kBFloat16) {
        store_factors(reinterpret_cast<Factor*>(out) + i, v);
      } else {
        store(reinterpret_cast<float*>(out) + i, v);
      }
    }
    return;
  }
  Floats most = zeros();
  uint32_t nan = 0;  // not every instruction set's maximum keeps NaN, which must reach the output
  for (int i = 0; i < n; i += kNumbers) {
    const Floats v = first_of(n - i, load(x + i, n - i) - mean, zeros());
    nan |= bits_of_nan(v);
    most = greater(most, absolute(v));
  }
  const float peak = nan ? std::numeric_limits<float>::quiet_NaN() : largest(most);
  const float step = peak == 0 ? 1.f : peak / 127.f;
  *scale = step * moments.factor;
  const Floats inverse = splat(1.f / step);
  if (m.dtype == kInt4) return store_groups(m, x, mean, inverse, out);
  for (int i = 0; i < n; i += kNumbers) {
    const Floats v = first_of(n - i, load(x + i, n - i) - mean, zeros());
    store_quantized(reinterpret_cast<Quantized*>(out) + i, v * inverse);
  }
}

// Products of N rows with S sixteens of outputs from `column` on, weights of a tile side by side. Each sum adds its
// terms in input order for any N and S, so a row's result does not depend on the rows beside it.
template <int N, int S>
NASH_INLINE void multiply_float32(const Matrix& m, const uint8_t* x, size_t stride, int column, Fetch ahead,
                                  Floats (&result)[N][S]) {
  const float* w = static_cast<const float*>(m.weights) + static_cast<size_t>(column / kTile) * m.inputs * kTile +
                   column % kTile;
  clear(result);
  for (int k = 0; k < m.inputs; k++, w += kTile) {
#pragma GCC unroll 2
    for (int s = 0; s < S; s++) {
      const Floats weights = load(w + s * kNumbers);
      fetch(ahead);
#pragma GCC unroll 8
      for (int r = 0; r < N; r++) {
        result[r][s] = fma(splat(reinterpret_cast<const float*>(x + r * stride)[k]), weights, result[r][s]);
      }
    }
  }
}

template <int N, int S>
NASH_INLINE void multiply_bfloat16(const Matrix& m, const uint8_t* x, size_t stride, int column, Fetch ahead,
                                   Floats (&result)[N][S]) {
  const int pairs = (m.inputs + 1) / 2;
  const uint16_t* w = static_cast<const uint16_t*>(m.weights) +
                      (static_cast<size_t>(column / kTile) * pairs * kTile + column % kTile) * 2;
  clear(result);
  for (int k = 0; k < pairs; k++, w += 2 * kTile) {
#pragma GCC unroll 2
    for (int s = 0; s < S; s++) {
      const Pairs weights = load_pairs(w + s * 2 * kNumbers);
      fetch(ahead);
#pragma GCC unroll 8
      for (int r = 0; r < N; r++) {
        const FactorPair two = load_factor_pair(reinterpret_cast<const Factor*>(x + r * stride) + 2 * k);
        result[r][s] = add_pairs(result[r][s], two, weights);
      }
    }
  }
}

template <int N, int S>
NASH_INLINE void multiply_int8(const Matrix& m, const uint8_t* x, size_t stride, const float* scales, int column, Fetch ahead,
                               Floats (&result)[N][S]) {
  const int quads = (m.inputs + 3) / 4;
  const int8_t* w = static_cast<const int8_t*>(m.weights) +
                    (static_cast<size_t>(column / kTile) * quads * kTile + column % kTile) * 4;
  Ints all[N][S];
#pragma GCC unroll 8
  for (int r = 0; r < N; r++) {
#pragma GCC unroll 2
    for (int s = 0; s < S; s++) all[r][s] = kUnsignedInputs ? load(m.offsets + column + s * kNumbers) : splat_int(0);
  }
  for (int k = 0; k < quads; k++, w += 4 * kTile) {
#pragma GCC unroll 2
    for (int s = 0; s < S; s++) {
      const Quads weights = load_quads(w + s * 4 * kNumbers);
      fetch(ahead);
#pragma GCC unroll 8
      for (int r = 0; r < N; r++) {
        const QuantizedQuad four = load_quantized_quad(reinterpret_cast<const Quantized*>(x + r * stride) + 4 * k);
        all[r][s] = add_quads(all[r][s], four, weights);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) {
#pragma GCC unroll 2
      for (int s = 0; s < S; s++) keep_in_registers(all[r][s]);
    }
  }
#pragma GCC unroll 2
  for (int s = 0; s < S; s++) {
    const Floats steps = load(m.scales + column + s * kNumbers);
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) result[r][s] = to_floats(all[r][s]) * (steps * splat(scales[r]));
  }
}

// A tile's weights are its groups in sequence: 32 scales in float16, then [4][32][4] bytes. Byte (j, o, i) holds the
// weights of output o for inputs 4j + i (low) and 16 + 4j + i (high), each with 8 added.
template <int N, int S>
NASH_INLINE void multiply_int4(const Matrix& m, const uint8_t* x, size_t stride, const float* scales, int column, Fetch ahead,
                               Floats (&result)[N][S]) {
  const int groups = groups_of(m);
  const uint8_t* w = static_cast<const uint8_t*>(m.weights) + static_cast<size_t>(column / kTile) * groups * kGroupBytes;
  clear(result);
  constexpr int P = kInt4Parts;  // registers of outputs whose group sums are held at once
  for (int g = 0; g < groups; g++, w += kGroupBytes) {
#pragma GCC unroll 8
    for (int part = 0; part < S * kParts; part += P) {
      const int output = column % kTile + part * kLanes;
      GroupSum sums[N][P];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        NibbleRegister nibbles[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
          fetch(ahead);
          nibbles[p] = reg_load_nibbles(w + kScaleBytes + (j * kTile + output + p * kLanes) * 4);
        }
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) {
          const int8_t* four = reinterpret_cast<const int8_t*>(x + r * stride) + g * kGroup + 4 * j;
          const ByteQuad low = load_byte_quad(four), high = load_byte_quad(four + kGroup / 2);
#pragma GCC unroll 2
          for (int p = 0; p < P; p++) reg_add_nibbles(sums[r][p], low, high, nibbles[p]);
        }
      }
#pragma GCC unroll 2
      for (int p = 0; p < P; p++) {
        const Register steps = reg_load_float16(reinterpret_cast<const uint16_t*>(w) + output + p * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) {
          const int32_t* corrections = reinterpret_cast<const int32_t*>(x + r * stride + groups * kGroup);
          const IntRegister total = reg_add(reg_total(sums[r][p]), reg_splat_int(corrections[g]));
          Register& all = result[r][(part + p) / kParts].part[(part + p) % kParts];
          all = reg_fma(reg_to_floats(total), steps, all);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int s = 0; s < S; s++) {
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) result[r][s] = result[r][s] * splat(scales[r]);
  }
}

inline size_t tile_bytes(const Matrix& m) {
  switch (m.dtype) {
    case kInt8: return static_cast<size_t>(round_up(m.inputs, 4)) * kTile;
    case kInt4: return static_cast<size_t>(groups_of(m)) * kGroupBytes;
    case kBFloat16: return static_cast<size_t>(round_up(m.inputs, 2)) * kTile * 2;
    default: return static_cast<size_t>(m.inputs) * kTile * 4;
  }
}

template <int N, int S, class Use>
void product_block(const Matrix& m, const Inputs& in, int row, int column, Fetch ahead, Use& use) {
  const uint8_t* x = in.data + row * in.stride;
  Floats result[N][S];
  if (m.dtype == kInt8) {
    multiply_int8<N, S>(m, x, in.stride, in.scales + row, column, ahead, result);
  } else if (m.dtype == kInt4) {
    multiply_int4<N, S>(m, x, in.stride, in.scales + row, column, ahead, result);
  } else if (m.dtype == kBFloat16) {
    multiply_bfloat16<N, S>(m, x, in.stride, column, ahead, result);
  } else {
    multiply_float32<N, S>(m, x, in.stride, column, ahead, result);
  }
#pragma GCC unroll 2
  for (int s = 0; s < S; s++) {
    const int first = column + s * kNumbers;
    if (first >= m.outputs) break;
    const Floats bias = m.bias ? load(m.bias + first) : zeros();
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) use(row + r, first, result[r][s] + bias);
  }
}

// All rows with S sixteens of outputs, in blocks of at most `Most` rows, as even as possible. All blocks prefetch an
// equal part of what comes next, so that memory works at a steady pace.
template <int Most, int S, class Use>
void product_rows(const Matrix& m, const Inputs& in, Share rows, int column, const char* next, Use& use) {
  int row = rows.begin;
  const int all = (rows.end - row + Most - 1) / Most;
  if (all == 0) return;  // this share's only row went to the thread with the other row of its pair
  const size_t step = (kLineBytes + all - 1) / all, part = tile_bytes(m) * S / 2 / all;
  for (int blocks = all; blocks > 0; blocks--, next += part) {
    const Fetch ahead = {next, step};
    const int n = (rows.end - row + blocks - 1) / blocks;
    switch (n) {
      case 8: if constexpr (Most >= 8) product_block<8, S>(m, in, row, column, ahead, use); break;
      case 7: if constexpr (Most >= 7) product_block<7, S>(m, in, row, column, ahead, use); break;
      case 6: if constexpr (Most >= 6) product_block<6, S>(m, in, row, column, ahead, use); break;
      case 5: if constexpr (Most >= 5) product_block<5, S>(m, in, row, column, ahead, use); break;
      case 4: if constexpr (Most >= 4) product_block<4, S>(m, in, row, column, ahead, use); break;
      case 3: if constexpr (Most >= 3) product_block<3, S>(m, in, row, column, ahead, use); break;
      case 2: if constexpr (Most >= 2) product_block<2, S>(m, in, row, column, ahead, use); break;
      default: product_block<1, S>(m, in, row, column, ahead, use); break;
    }
    row += n;
  }
}

// A few rows take both sixteens of a tile at once; more rows take one after the other if registers are few. The next
// tile, which lies behind this one, is prefetched meanwhile.
template <int ByTwo, int ByOne, class Use>
void product_tile_by(const Matrix& m, const Inputs& in, Share rows, int tile, Use& use) {
  const int column = tile * kTile;
  const char* next = static_cast<const char*>(m.weights) + (tile + 1) * tile_bytes(m);
  if constexpr (ByOne > 0) {
    if (rows.end - rows.begin > ByTwo) {
      product_rows<ByOne, 1>(m, in, rows, column, next, use);
      if (column + kNumbers >= m.outputs) return;
      product_rows<ByOne, 1>(m, in, rows, column + kNumbers, next + tile_bytes(m) / 2, use);
      return;
    }
  }
  product_rows<ByTwo, 2>(m, in, rows, column, next, use);
}

// The outputs of one tile for some rows: use(row, column, sixteen results).
template <class Use>
void product_tile(const Matrix& m, const Inputs& in, Share rows, int tile, Use& use) {
  switch (m.dtype) {
    case kInt8: return product_tile_by<kQuadRowsByTwo, kQuadRowsByOne>(m, in, rows, tile, use);
    case kInt4: return product_tile_by<kInt4Rows, 0>(m, in, rows, tile, use);
    case kBFloat16: return product_tile_by<kPairRowsByTwo, kPairRowsByOne>(m, in, rows, tile, use);
    default: return product_tile_by<kRowsByTwo, kRowsByOne>(m, in, rows, tile, use);
  }
}

// This thread's part of the outputs, under a division of this matrix's tiles alone.
template <class Use>
void product(const Matrix& m, const Inputs& in, const Division& division, Use&& use) {
  division.each([&](int tile, Share rows) { product_tile(m, in, rows, tile, use); });
}
