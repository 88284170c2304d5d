// Norms, and products of a few rows with packed weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "abi.h"
#include "numbers.h"
#include "share.h"

constexpr int kTile = 32;  // outputs of a tile: two registers
constexpr int kBlock = 8;  // rows that share a load of weights: 16 accumulators

struct Moments {
  float mean, factor;  // a normed value is (x - mean) * factor
};

inline Moments moments(const Stack& stack, const float* x) {
  const int n = stack.width;
  float mean = 0;
  if (stack.layer_norm) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) sum = _mm512_add_ps(sum, load(x + i, tail(n - i)));
    mean = _mm512_reduce_add_ps(sum) / static_cast<float>(n);
  }
  const __m512 center = _mm512_set1_ps(mean);
  __m512 squares = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail(n - i);
    const __m512 v = _mm512_maskz_sub_ps(mask, load(x + i, mask), center);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  return {mean, 1.f / std::sqrt(_mm512_reduce_add_ps(squares) / static_cast<float>(n) + stack.eps)};
}

inline void norm_in_place(const Stack& stack, const Norm& norm, float* x) {
  const Moments m = moments(stack, x);
  const __m512 mean = _mm512_set1_ps(m.mean), factor = _mm512_set1_ps(m.factor);
  for (int i = 0; i < stack.width; i += 16) {
    const __mmask16 mask = tail(stack.width - i);
    const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(load(x + i, mask), mean), factor);
    const __m512 shift = norm.shift ? load(norm.shift + i, mask) : _mm512_setzero_ps();
    _mm512_mask_storeu_ps(x + i, mask, _mm512_fmadd_ps(normed, load(norm.gain + i, mask), shift));
  }
}

inline int tiles(const Matrix& m) { return round_up(m.outputs, kTile) / kTile; }

inline size_t input_stride(const Matrix& m) {  // bytes
  const int size = m.dtype == kInt8 ? 1 : m.dtype == kBFloat16 ? 2 : 4;
  return static_cast<size_t>(round_up(m.inputs * size, 64));
}

// Rows in the form that a matrix takes them.
struct Inputs {
  const uint8_t* data;
  size_t stride;
  const float* scales;
};

// Write (x - mean) * factor as inputs of a matrix. Values beyond the last input are zero.
inline void convert(const Matrix& m, const float* x, Moments moments, uint8_t* out, float* scale) {
  const int n = m.inputs;
  const __m512 mean = _mm512_set1_ps(moments.mean);
  if (m.dtype != kInt8) {
    const __m512 factor = _mm512_set1_ps(moments.factor);
    for (int i = 0; i < n; i += 16) {
      const __mmask16 mask = tail(n - i);
      const __m512 v = _mm512_maskz_mul_ps(mask, _mm512_sub_ps(load(x + i, mask), mean), factor);
      if (m.dtype == kBFloat16) {
        store_bfloat16(reinterpret_cast<uint16_t*>(out) + i, v);
      } else {
        _mm512_storeu_ps(reinterpret_cast<float*>(out) + i, v);
      }
    }
    return;
  }
  __m512 largest = _mm512_setzero_ps();
  __mmask16 bad = 0;  // max drops NaN, which must reach the output
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail(n - i);
    const __m512 v = _mm512_maskz_sub_ps(mask, load(x + i, mask), mean);
    bad |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
  }
  const float peak = bad ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(largest);
  const float step = peak == 0 ? 1.f : peak / 127.f;
  *scale = step * moments.factor;
  const __m512 inverse = _mm512_set1_ps(1.f / step);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = tail(n - i);
    const __m512 v = _mm512_maskz_sub_ps(mask, load(x + i, mask), mean);
    const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)), _mm512_set1_epi32(128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(q));
  }
}

template <int N>
inline void multiply(const Matrix& m, const uint8_t* x, size_t stride, const float* scales, int tile,
                     __m512 (&result)[N][2]) {
  const int column = tile * kTile;
  if (m.dtype == kInt8) {
    const int quads = (m.inputs + 3) / 4;
    const int8_t* w = static_cast<const int8_t*>(m.weights) + static_cast<size_t>(tile) * quads * 128;
    __m512i sum[N][2];
    for (int r = 0; r < N; r++) {
      sum[r][0] = _mm512_loadu_si512(m.offsets + column);
      sum[r][1] = _mm512_loadu_si512(m.offsets + column + 16);
    }
    for (int k = 0; k < quads; k++, w += 128) {
      const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
      for (int r = 0; r < N; r++) {
        int32_t four;
        std::memcpy(&four, x + r * stride + 4 * k, 4);
        const __m512i v = _mm512_set1_epi32(four);
        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], v, w0);
        sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], v, w1);
      }
    }
    const __m512 s0 = load(m.scales + column), s1 = load(m.scales + column + 16);
    for (int r = 0; r < N; r++) {
      const __m512 scale = _mm512_set1_ps(scales[r]);
      result[r][0] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][0]), _mm512_mul_ps(s0, scale));
      result[r][1] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][1]), _mm512_mul_ps(s1, scale));
    }
  } else {
    for (int r = 0; r < N; r++) result[r][0] = result[r][1] = _mm512_setzero_ps();
    if (m.dtype == kFloat32) {
      const float* w = static_cast<const float*>(m.weights) + static_cast<size_t>(tile) * m.inputs * kTile;
      for (int k = 0; k < m.inputs; k++, w += kTile) {
        const __m512 w0 = _mm512_load_ps(w), w1 = _mm512_load_ps(w + 16);
        for (int r = 0; r < N; r++) {
          const __m512 v = _mm512_set1_ps(reinterpret_cast<const float*>(x + r * stride)[k]);
          result[r][0] = _mm512_fmadd_ps(v, w0, result[r][0]);
          result[r][1] = _mm512_fmadd_ps(v, w1, result[r][1]);
        }
      }
    } else {
      const int pairs = (m.inputs + 1) / 2;
      const uint16_t* w = static_cast<const uint16_t*>(m.weights) + static_cast<size_t>(tile) * pairs * 64;
      for (int k = 0; k < pairs; k++, w += 64) {
        const __m512bh w0 = (__m512bh)_mm512_load_si512(w), w1 = (__m512bh)_mm512_load_si512(w + 32);
        for (int r = 0; r < N; r++) {
          int32_t two;
          std::memcpy(&two, x + r * stride + 4 * k, 4);
          const __m512bh v = (__m512bh)_mm512_set1_epi32(two);
          result[r][0] = _mm512_dpbf16_ps(result[r][0], v, w0);
          result[r][1] = _mm512_dpbf16_ps(result[r][1], v, w1);
        }
      }
    }
  }
  if (m.bias) {
    const __m512 b0 = load(m.bias + column), b1 = load(m.bias + column + 16);
    for (int r = 0; r < N; r++) {
      result[r][0] = _mm512_add_ps(result[r][0], b0);
      result[r][1] = _mm512_add_ps(result[r][1], b1);
    }
  }
}

template <int N, class Use>
inline void product_block(const Matrix& m, const Inputs& in, int row, int tile, Use& use) {
  __m512 result[N][2];
  multiply<N>(m, in.data + row * in.stride, in.stride, in.scales + row, tile, result);
  for (int r = 0; r < N; r++) {
    use(row + r, tile * kTile, result[r][0]);
    if (tile * kTile + 16 < m.outputs) use(row + r, tile * kTile + 16, result[r][1]);
  }
}

// The outputs of one tile for some rows: use(row, column, sixteen results).
template <class Use>
void product_tile(const Matrix& m, const Inputs& in, Share rows, int tile, Use& use) {
  int row = rows.begin;
  for (; row + kBlock <= rows.end; row += kBlock) product_block<kBlock>(m, in, row, tile, use);
  switch (rows.end - row) {
    case 7: return product_block<7>(m, in, row, tile, use);
    case 6: return product_block<6>(m, in, row, tile, use);
    case 5: return product_block<5>(m, in, row, tile, use);
    case 4: return product_block<4>(m, in, row, tile, use);
    case 3: return product_block<3>(m, in, row, tile, use);
    case 2: return product_block<2>(m, in, row, tile, use);
    case 1: return product_block<1>(m, in, row, tile, use);
    default: return;
  }
}

// This thread's part of the outputs, by a division that counts the tiles of this matrix from the first on.
template <class Use>
void product(const Matrix& m, const Inputs& in, const Division& division, Use&& use) {
  division.each(0, tiles(m), [&](int tile, Share rows) { product_tile(m, in, rows, tile, use); });
}
