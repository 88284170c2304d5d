// One pass of an encoder or decoder stack over rows of tokens, on CPUs with AVX-512 (VNNI and BF16 included).
//
// A row is one token of one sequence: its place in the vocabulary, its position, the cache slot of its sequence. A
// decode step is a row a sequence; a decoder prefix, or a whole source in the encoder, is several rows of one slot.
//
// Why one operator for the whole pass: a step of a small model is hundreds of operations of a few microseconds, and a
// library call around each one costs more than it does. Here threads are woken once a pass and meet at barriers that
// spin. Each matrix streams through memory once, in the order in which it is stored.
//
// Axes: R rows, I inputs, O outputs, H heads, E width of a head, C capacity of a slot in positions.
// Weights: tiles of 32 outputs, each contiguous: float32 [I][32], bfloat16 [I/2][32][2], int8 [I/4][32][4].
// Caches of each slot and head, laid out so that scores of 16 keys need no horizontal sum: in float32 keys [C/16][E][16]
// and values [C][E]; in bfloat16, whose instruction (vdpbf16ps) takes pairs, keys [C/16][E/2][16][2] and values
// [C/2][E][2], E rounded up to even.
//
// int8: weights symmetric per output; activations symmetric per row, held as unsigned with 128 added, which the
// instruction (vpdpbusd) wants; `offsets` takes 128 * sum of weights away again. A row's scale depends on that row
// alone, so its neighbours in a batch never change its result.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define NASH_AVX512 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")
#endif
#include <immintrin.h>
#endif

extern "C" {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };
enum Activation : int32_t { kRelu = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3 };

// A linear map; without outputs there is none, without inputs there is its bias alone.
struct Matrix {
  int32_t outputs, inputs, dtype, reserved;
  const void* weights;
  const float* scales;     // int8: [O rounded up to 32]
  const int32_t* offsets;  // int8: [O rounded up to 32]
  const float* bias;       // [O rounded up to 32] or null
};

// The norm's own weights; null where there is no norm, or where they are folded into the matrices that read it.
struct Norm {
  const float* gain;
  const float* shift;
};

// Without `out` there is none; without heads there is what is left of it: out's bias and the norm after it.
struct Attention {
  int32_t heads, reserved;
  Matrix queries;      // [H*E]
  Matrix keys_values;  // keys, then values, each [H*E]; of cross-attention from the encoder's output
  Matrix out;
  Norm after;     // of a post-norm layer
  void* keys;
  void* values;
  int64_t slot_stride, head_stride;  // numbers from one slot to the next, and within it from one head to the next
  const float* bias;  // or null: [H][2*reach], by distance: for key t and a query at p at reach - 1 - p + t
  int64_t reach;
};

struct FeedForward {
  Matrix gate;  // absent where the layer is not gated
  Matrix into;
  Matrix out;
  Norm after;
};

struct Layer {
  Attention self;
  Attention cross;
  FeedForward ffn;
};

struct Stack {
  int32_t layers, width, head_dim, activation;
  int32_t layer_norm;  // else RMS norm
  int32_t norm_first;  // else after the residual's sum
  int32_t causal;      // a decoder
  int32_t half;        // embedding, keys and values in bfloat16, else in float32
  float eps, embedding_scale;
  const Layer* layer;
  const void* embedding;   // [V][D]
  const float* positions;  // [..][D] or null
  int64_t unplaced_token;  // it gets no position; -1 where each one does
  Norm embedding_norm;
  Matrix output;
};

struct Rows {
  int32_t rows, wanted;
  const int64_t* tokens;
  const int32_t* positions;  // within the sequence
  const int32_t* slots;
  const int32_t* lengths;       // positions of the row's source
  const int32_t* memory_slots;  // where its source is cached for cross-attention
  const int32_t* wanted_rows;   // decoder: rows whose logits are asked for
};

// Memory of a pass, for as many rows as it may have.
struct Workspace {
  float* hidden;     // [R][D]
  float* queries;    // [R][widest attention]
  float* context;    // [R][widest attention]
  float* units;      // [R][widest feed-forward]
  uint8_t* inputs;   // [R][widest input] in the form that matrices take
  float* scales;     // [R]
  float* scores;     // [threads][longest row of scores]
  uint8_t* private_inputs;  // [threads][kPrivateRows][widest input]
  int32_t input_bytes, score_count;
};
}

#if NASH_AVX512
namespace {

constexpr int kTile = 32;        // outputs of a tile: two registers
constexpr int kBlock = 8;        // rows that share a load of weights: 16 accumulators
constexpr int kPrivateRows = 4;  // up to so many rows, each thread converting all of them is cheaper than a barrier
constexpr int kSpins = 4000;     // tens of microseconds; then the processor may be needed by somebody else

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Threads that run one function together and meet at barriers within it.
class Pool {
 public:
  explicit Pool(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { work(i); });
  }
  ~Pool() {
    stop_ = true;
    wake();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return size_; }

  template <class F>
  void run(F&& function) {
    if (size_ > 1) {
      job_ = [](void* f, int i) { (*static_cast<std::remove_reference_t<F>*>(f))(i); };
      argument_ = &function;
      left_.store(size_ - 1, std::memory_order_relaxed);
      wake();
    }
    function(0);
    spin_until([this] { return size_ == 1 || left_.load(std::memory_order_acquire) == 0; });
  }

  void barrier() {
    if (size_ == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
  }

 private:
  template <class Done>
  static void spin_until(Done&& done) {
    for (int spins = 0; !done(); spins++) {
      if (spins < kSpins) {
        _mm_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
  void wake() {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  void work(int index) {
    uint32_t seen = 0;
    for (;;) {
      for (int spins = 0; spins < kSpins && generation_.load(std::memory_order_acquire) == seen; spins++) _mm_pause();
      generation_.wait(seen, std::memory_order_acquire);
      seen++;
      if (stop_) return;
      job_(argument_, index);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int size_;
  void (*job_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> left_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// ---- sixteen numbers at a time -------------------------------------------------------------------------------------

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

// ---- norms ---------------------------------------------------------------------------------------------------------

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

// ---- matrices ------------------------------------------------------------------------------------------------------

size_t input_stride(const Matrix& m) {  // bytes
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
void convert(const Matrix& m, const float* x, Moments moments, uint8_t* out, float* scale) {
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

struct Share {
  int begin, end;
};
inline Share share(int count, int thread, int threads) {
  return {static_cast<int>(static_cast<int64_t>(count) * thread / threads),
          static_cast<int>(static_cast<int64_t>(count) * (thread + 1) / threads)};
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

// This thread's share of the outputs, for all rows: use(row, column, sixteen results).
template <class Use>
void product(const Matrix& m, const Inputs& in, int rows, Share tiles, Use&& use) {
  for (int tile = tiles.begin; tile < tiles.end; tile++) {
    int row = 0;
    for (; row + kBlock <= rows; row += kBlock) product_block<kBlock>(m, in, row, tile, use);
    switch (rows - row) {
      case 7: product_block<7>(m, in, row, tile, use); break;
      case 6: product_block<6>(m, in, row, tile, use); break;
      case 5: product_block<5>(m, in, row, tile, use); break;
      case 4: product_block<4>(m, in, row, tile, use); break;
      case 3: product_block<3>(m, in, row, tile, use); break;
      case 2: product_block<2>(m, in, row, tile, use); break;
      case 1: product_block<1>(m, in, row, tile, use); break;
      default: break;
    }
  }
}

// ---- attention -----------------------------------------------------------------------------------------------------

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

// Put sixteen results of a key and value projection into a slot; `column` counts keys first, then values.
template <class T>
void cache_keys_values(const Attention& attention, int width, int slot, int position, int column, __m512 result) {
  alignas(64) T lanes[16];
  if constexpr (std::is_same_v<T, float>) {
    _mm512_store_ps(lanes, result);
  } else {
    store_bfloat16(lanes, result);
  }
  const int inner = attention.heads * width, end = std::min(column + 16, 2 * inner);
  int head = column % inner / width, e = column % width;
  for (int c = column; c < end; c++) {
    const int64_t base = slot * attention.slot_stride + head * attention.head_stride;
    if (c < inner) {
      static_cast<T*>(attention.keys)[base + Layout<T>::key(position, e, width)] = lanes[c - column];
    } else {
      T* place = static_cast<T*>(attention.values) + base + Layout<T>::value(position, e, width);
      *place = lanes[c - column];
      // The other of a pair gets a weight of zero as long as it is not there, and zero times NaN is NaN.
      if (std::is_same_v<T, uint16_t> && position % 2 == 0) place[1] = 0;
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

// ---- a pass --------------------------------------------------------------------------------------------------------

// One thread's part of a pass. The functions are called by all threads of the pool in the same order.
class Worker {
 public:
  Worker(const Stack& stack, const Rows& rows, const Workspace& space, Pool& pool, int thread)
      : stack_(stack), rows_(rows), space_(space), pool_(pool), thread_(thread), threads_(pool.size()) {}

  void embed() {
    const int width = stack_.width;
    const __m512 scale = _mm512_set1_ps(stack_.embedding_scale);
    each_row(rows_.rows, [&](int r) {
      float* x = hidden(r);
      const size_t token = static_cast<size_t>(rows_.tokens[r]) * width;
      const bool placed = stack_.positions && rows_.tokens[r] != stack_.unplaced_token;
      const float* position =
          placed ? stack_.positions + static_cast<size_t>(rows_.positions[r]) * width : nullptr;
      for (int i = 0; i < width; i += 16) {
        const __mmask16 mask = tail(width - i);
        const __m512 v = stack_.half
                             ? load(static_cast<const uint16_t*>(stack_.embedding) + token + i, mask)
                             : load(static_cast<const float*>(stack_.embedding) + token + i, mask);
        const __m512 added = position ? load(position + i, mask) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(x + i, mask, _mm512_fmadd_ps(v, scale, added));
      }
      if (stack_.embedding_norm.gain) norm_in_place(stack_, stack_.embedding_norm, x);
    });
    pool_.barrier();
  }

  void layers() {
    for (int i = 0; i < stack_.layers; i++) {
      const Layer& layer = stack_.layer[i];
      if (layer.self.out.outputs) self_attention(layer.self);
      if (layer.cross.out.outputs) cross_attention(layer.cross);
      if (layer.ffn.out.outputs) feed_forward(layer.ffn);
    }
  }

  // Keys and values of the encoder's rows, into a decoder's slots. Their matrices take one form of the rows.
  void fill_memory(const Stack& decoder, const int32_t* slots) {
    const Inputs* in = nullptr;
    Inputs converted;
    for (int i = 0; i < decoder.layers; i++) {
      const Attention& cross = decoder.layer[i].cross;
      if (!cross.heads) continue;
      if (!in) {
        converted = inputs(cross.keys_values, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
        in = &converted;
      }
      project_keys_values(cross, slots, *in);
    }
  }

  void logits(float* out) {
    const int vocabulary = stack_.output.outputs;
    const Inputs in =
        inputs(stack_.output, space_.hidden, stack_.width, rows_.wanted, rows_.wanted_rows, stack_.norm_first);
    product(stack_.output, in, rows_.wanted, tiles(stack_.output), [&](int r, int column, __m512 v) {
      _mm512_mask_storeu_ps(out + static_cast<size_t>(r) * vocabulary + column, tail(vocabulary - column), v);
    });
  }

 private:
  float* hidden(int row) const { return space_.hidden + static_cast<size_t>(row) * stack_.width; }
  Share tiles(const Matrix& m) const { return share(round_up(m.outputs, kTile) / kTile, thread_, threads_); }

  template <class F>
  void each_row(int rows, F&& f) {
    const Share own = share(rows, thread_, threads_);
    for (int r = own.begin; r < own.end; r++) f(r);
  }

  // Rows of `x` [.][width] in the form that `m` takes, normed first where asked; `selected` rows of them, or all.
  Inputs inputs(const Matrix& m, const float* x, int width, int rows, const int32_t* selected, bool norm) {
    const size_t stride = input_stride(m);
    const bool own = rows <= kPrivateRows;
    uint8_t* data = own ? space_.private_inputs + static_cast<size_t>(thread_) * kPrivateRows * space_.input_bytes
                        : space_.inputs;
    float* scales = own ? private_scales_ : space_.scales;
    const Share part = own ? Share{0, rows} : share(rows, thread_, threads_);
    for (int r = part.begin; r < part.end; r++) {
      const float* row = x + static_cast<size_t>(selected ? selected[r] : r) * width;
      convert(m, row, norm ? moments(stack_, row) : Moments{0.f, 1.f}, data + r * stride, scales + r);
    }
    if (!own) pool_.barrier();
    return {data, stride, scales};
  }

  void project_queries(const Attention& attention, const Inputs& in) {
    const int inner = attention.queries.outputs;
    product(attention.queries, in, rows_.rows, tiles(attention.queries), [&](int r, int column, __m512 v) {
      _mm512_mask_storeu_ps(space_.queries + static_cast<size_t>(r) * inner + column, tail(inner - column), v);
    });
  }

  void project_keys_values(const Attention& attention, const int32_t* slots, const Inputs& in) {
    product(attention.keys_values, in, rows_.rows, tiles(attention.keys_values), [&](int r, int column, __m512 v) {
      if (stack_.half) {
        cache_keys_values<uint16_t>(attention, stack_.head_dim, slots[r], rows_.positions[r], column, v);
      } else {
        cache_keys_values<float>(attention, stack_.head_dim, slots[r], rows_.positions[r], column, v);
      }
    });
  }

  // Each row's queries over the first count(row) keys of its slot.
  template <class Count>
  void attend_rows(const Attention& attention, const int32_t* slots, Count&& count) {
    const int width = stack_.head_dim, heads = attention.heads, inner = heads * width;
    float* scores = space_.scores + static_cast<size_t>(thread_) * space_.score_count;
    uint16_t* pairs = reinterpret_cast<uint16_t*>(scores + space_.score_count - round_up(width, 16));
    const Share own = share(rows_.rows * heads, thread_, threads_);
    for (int unit = own.begin; unit < own.end; unit++) {
      const int r = unit / heads, head = unit % heads;
      const int64_t base = slots[r] * attention.slot_stride + head * attention.head_stride;
      const size_t place = static_cast<size_t>(r) * inner + head * width;
      const float* bias = attention.bias;
      if (bias) bias += (2 * head + 1) * attention.reach - 1 - rows_.positions[r];
      if (stack_.half) {
        attend(space_.queries + place, static_cast<const uint16_t*>(attention.keys) + base,
               static_cast<const uint16_t*>(attention.values) + base, count(r), width, bias, scores,
               pairs, space_.context + place);
      } else {
        attend(space_.queries + place, static_cast<const float*>(attention.keys) + base,
               static_cast<const float*>(attention.values) + base, count(r), width, bias, scores,
               pairs, space_.context + place);
      }
    }
    pool_.barrier();
  }

  void self_attention(const Attention& attention) {
    if (!attention.heads) return add(attention.out, space_.context, 0, attention.after);
    const Inputs in = inputs(attention.queries, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
    project_queries(attention, in);
    project_keys_values(attention, rows_.slots, in);
    pool_.barrier();
    attend_rows(attention, rows_.slots,
                [&](int r) { return stack_.causal ? rows_.positions[r] + 1 : rows_.lengths[r]; });
    add(attention.out, space_.context, attention.queries.outputs, attention.after);
  }

  void cross_attention(const Attention& attention) {
    if (!attention.heads) return add(attention.out, space_.context, 0, attention.after);
    const Inputs in = inputs(attention.queries, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
    project_queries(attention, in);
    pool_.barrier();
    attend_rows(attention, rows_.memory_slots, [&](int r) { return rows_.lengths[r]; });
    add(attention.out, space_.context, attention.queries.outputs, attention.after);
  }

  void feed_forward(const FeedForward& ffn) {
    const int units = ffn.into.outputs;
    if (!units) return add(ffn.out, space_.units, 0, ffn.after);
    const Inputs in = inputs(ffn.into, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
    const Matrix& activated = ffn.gate.outputs ? ffn.gate : ffn.into;
    product(activated, in, rows_.rows, tiles(activated), [&](int r, int column, __m512 v) {
      _mm512_mask_storeu_ps(space_.units + static_cast<size_t>(r) * units + column, tail(units - column),
                            activate(stack_.activation, v));
    });
    if (ffn.gate.outputs) {  // the same thread has the same columns of both
      product(ffn.into, in, rows_.rows, tiles(ffn.into), [&](int r, int column, __m512 v) {
        float* place = space_.units + static_cast<size_t>(r) * units + column;
        const __mmask16 mask = tail(units - column);
        _mm512_mask_storeu_ps(place, mask, _mm512_mul_ps(load(place, mask), v));
      });
    }
    pool_.barrier();
    add(ffn.out, space_.units, units, ffn.after);
  }

  // Add the product to the residual, and norm it in a post-norm layer.
  void add(const Matrix& m, const float* x, int width, const Norm& after) {
    const Inputs in = inputs(m, x, width, rows_.rows, nullptr, false);
    product(m, in, rows_.rows, tiles(m), [&](int r, int column, __m512 v) {
      float* place = hidden(r) + column;
      const __mmask16 mask = tail(stack_.width - column);
      _mm512_mask_storeu_ps(place, mask, _mm512_add_ps(load(place, mask), v));
    });
    pool_.barrier();
    if (stack_.norm_first) return;
    each_row(rows_.rows, [&](int r) { norm_in_place(stack_, after, hidden(r)); });
    pool_.barrier();
  }

 private:
  const Stack& stack_;
  const Rows& rows_;
  const Workspace& space_;
  Pool& pool_;
  const int thread_, threads_;
  float private_scales_[kPrivateRows];
};

}  // namespace

extern "C" {

int32_t nash_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

void* nash_pool_create(int32_t threads) { return new Pool(threads); }
void nash_pool_destroy(void* pool) { delete static_cast<Pool*>(pool); }

// Bytes of the packed weights of a matrix.
int64_t nash_packed_bytes(int32_t outputs, int32_t inputs, int32_t dtype) {
  const int64_t lanes = round_up(outputs, kTile);
  if (dtype == kInt8) return lanes * round_up(inputs, 4);
  return dtype == kBFloat16 ? lanes * round_up(inputs, 2) * 2 : lanes * inputs * 4;
}

// Lay out float32 weights [O][I]; `scales` and `offsets` are written for int8.
void nash_pack(const float* weights, int32_t outputs, int32_t inputs, int32_t dtype, void* packed, float* scales,
               int32_t* offsets) {
  const int group = dtype == kInt8 ? 4 : dtype == kBFloat16 ? 2 : 1;
  const int depth = round_up(inputs, group);
  for (int o = 0; o < round_up(outputs, kTile); o++) {
    const float* row = o < outputs ? weights + static_cast<size_t>(o) * inputs : nullptr;
    float inverse = 0;
    if (dtype == kInt8) {
      float peak = 0;
      for (int i = 0; row && i < inputs; i++) peak = std::max(peak, std::fabs(row[i]));
      scales[o] = peak / 127.f;
      inverse = peak > 0 ? 127.f / peak : 0.f;
      offsets[o] = 0;
    }
    const size_t base = static_cast<size_t>(o / kTile) * depth * kTile + static_cast<size_t>(o % kTile) * group;
    for (int i = 0; i < depth; i++) {
      const float value = row && i < inputs ? row[i] : 0.f;
      const size_t place = base + static_cast<size_t>(i / group) * kTile * group + i % group;
      if (dtype == kInt8) {
        const int q = static_cast<int>(std::nearbyint(value * inverse));
        static_cast<int8_t*>(packed)[place] = static_cast<int8_t>(q);
        offsets[o] -= 128 * q;
      } else if (dtype == kBFloat16) {
        static_cast<uint16_t*>(packed)[place] = to_bfloat16(value);
      } else {
        static_cast<float*>(packed)[place] = value;
      }
    }
  }
}

// Encode whole sources; their keys and values go into the slots `memory_slots` of the decoder's cross-attention.
void nash_encode(const Stack* encoder, const Stack* decoder, const Rows* rows, const Workspace* space, void* pool) {
  Pool& threads = *static_cast<Pool*>(pool);
  threads.run([&](int thread) {
    Worker worker(*encoder, *rows, *space, threads, thread);
    worker.embed();
    worker.layers();
    worker.fill_memory(*decoder, rows->memory_slots);
  });
}

// Advance sequences by a row each or several; `logits` [wanted][V].
void nash_decode(const Stack* decoder, const Rows* rows, const Workspace* space, void* pool, float* logits) {
  Pool& threads = *static_cast<Pool*>(pool);
  threads.run([&](int thread) {
    Worker worker(*decoder, *rows, *space, threads, thread);
    worker.embed();
    worker.layers();
    worker.logits(logits);
  });
}
}
#else
extern "C" int32_t nash_supported() { return 0; }
#endif
