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
//
// int4: weights in groups of 32 inputs with a scale each (matrix.h has the layout), rows as signed bytes. The
// instruction's unsigned side is the weight's, with 8 added; what that adds to a group's products is 8 times the sum of
// the row's numbers there, which the row's form brings along. A group's sum is exact, and groups are added in float32.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>

#include "abi.h"
#include "attention.h"
#include "matrix.h"
#include "numbers.h"
#include "pool.h"

namespace {

constexpr int kPrivateRows = 4;  // up to so many rows, each thread converting all of them is cheaper than a barrier

// One thread's part of a pass. The functions are called by all threads of the pool in the same order.
class Worker {
 public:
  Worker(const Stack& stack, const Rows& rows, const Workspace& space, Pool& pool, int thread, int threads)
      : stack_(stack), rows_(rows), space_(space), pool_(pool), thread_(thread), threads_(threads) {}

  void embed() {
    const int width = stack_.width;
    const Floats scale = splat(stack_.embedding_scale);
    each_row(rows_.rows, [&](int r) {
      float* x = hidden(r);
      const size_t token = static_cast<size_t>(rows_.tokens[r]) * width;
      const bool placed = stack_.positions && rows_.tokens[r] != stack_.unplaced_token;
      const float* position =
          placed ? stack_.positions + static_cast<size_t>(rows_.positions[r]) * width : nullptr;
      for (int i = 0; i < width; i += kNumbers) {
        const int n = width - i;
        const Floats v = stack_.half ? load(static_cast<const uint16_t*>(stack_.embedding) + token + i, n)
                                     : load(static_cast<const float*>(stack_.embedding) + token + i, n);
        store(x + i, fma(v, scale, position ? load(position + i, n) : zeros()), n);
      }
      if (stack_.embedding_norm.gain) norm_in_place(stack_, stack_.embedding_norm, x);
    });
    pool_.barrier(thread_);
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
    product(stack_.output, in, rows_.wanted, tiles(stack_.output), [&](int r, int column, Floats v) {
      store(out + static_cast<size_t>(r) * vocabulary + column, v, vocabulary - column);
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
    if (!own) pool_.barrier(thread_);
    return {data, stride, scales};
  }

  void project_queries(const Attention& attention, const Inputs& in) {
    const int inner = attention.queries.outputs;
    product(attention.queries, in, rows_.rows, tiles(attention.queries), [&](int r, int column, Floats v) {
      store(space_.queries + static_cast<size_t>(r) * inner + column, v, inner - column);
    });
  }

  void project_keys_values(const Attention& attention, const int32_t* slots, const Inputs& in) {
    product(attention.keys_values, in, rows_.rows, tiles(attention.keys_values), [&](int r, int column, Floats v) {
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
    Factor* factors = reinterpret_cast<Factor*>(scores + space_.score_count - round_up(width, kNumbers));
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
               factors, space_.context + place);
      } else {
        attend(space_.queries + place, static_cast<const float*>(attention.keys) + base,
               static_cast<const float*>(attention.values) + base, count(r), width, bias, scores,
               factors, space_.context + place);
      }
    }
    pool_.barrier(thread_);
  }

  void self_attention(const Attention& attention) {
    if (!attention.heads) return add(attention.out, space_.context, 0, attention.after);
    const Inputs in = inputs(attention.queries, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
    project_queries(attention, in);
    project_keys_values(attention, rows_.slots, in);
    pool_.barrier(thread_);
    attend_rows(attention, rows_.slots,
                [&](int r) { return stack_.causal ? rows_.positions[r] + 1 : rows_.lengths[r]; });
    add(attention.out, space_.context, attention.queries.outputs, attention.after);
  }

  void cross_attention(const Attention& attention) {
    if (!attention.heads) return add(attention.out, space_.context, 0, attention.after);
    const Inputs in = inputs(attention.queries, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
    project_queries(attention, in);
    pool_.barrier(thread_);
    attend_rows(attention, rows_.memory_slots, [&](int r) { return rows_.lengths[r]; });
    add(attention.out, space_.context, attention.queries.outputs, attention.after);
  }

  void feed_forward(const FeedForward& ffn) {
    const int units = ffn.into.outputs;
    if (!units) return add(ffn.out, space_.units, 0, ffn.after);
    const Inputs in = inputs(ffn.into, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
    const Matrix& activated = ffn.gate.outputs ? ffn.gate : ffn.into;
    product(activated, in, rows_.rows, tiles(activated), [&](int r, int column, Floats v) {
      store(space_.units + static_cast<size_t>(r) * units + column, activate(stack_.activation, v), units - column);
    });
    if (ffn.gate.outputs) {  // the same thread has the same columns of both
      product(ffn.into, in, rows_.rows, tiles(ffn.into), [&](int r, int column, Floats v) {
        float* place = space_.units + static_cast<size_t>(r) * units + column;
        store(place, load(place, units - column) * v, units - column);
      });
    }
    pool_.barrier(thread_);
    add(ffn.out, space_.units, units, ffn.after);
  }

  // Add the product to the residual, and norm it in a post-norm layer.
  void add(const Matrix& m, const float* x, int width, const Norm& after) {
    const Inputs in = inputs(m, x, width, rows_.rows, nullptr, false);
    product(m, in, rows_.rows, tiles(m), [&](int r, int column, Floats v) {
      float* place = hidden(r) + column;
      store(place, load(place, stack_.width - column) + v, stack_.width - column);
    });
    pool_.barrier(thread_);
    if (stack_.norm_first) return;
    each_row(rows_.rows, [&](int r) { norm_in_place(stack_, after, hidden(r)); });
    pool_.barrier(thread_);
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
#define NASH_EXPORT __attribute__((visibility("default")))

NASH_EXPORT void* nash_pool_create(int32_t threads) { return new Pool(threads); }
NASH_EXPORT void nash_pool_destroy(void* pool) { delete static_cast<Pool*>(pool); }

// Bytes of the packed weights of a matrix.
NASH_EXPORT int64_t nash_packed_bytes(int32_t outputs, int32_t inputs, int32_t dtype) {
  const int64_t lanes = round_up(outputs, kTile);
  if (dtype == kInt8) return lanes * round_up(inputs, 4);
  return dtype == kBFloat16 ? lanes * round_up(inputs, 2) * 2 : lanes * inputs * 4;
}

// Lay out float32 weights [O][I]; `scales` and `offsets` are written for int8.
NASH_EXPORT void nash_pack(const float* weights, int32_t outputs, int32_t inputs, int32_t dtype, void* packed, float* scales,
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
NASH_EXPORT void nash_encode(const Stack* encoder, const Stack* decoder, const Rows* rows, const Workspace* space, void* pool) {
  Pool& threads = *static_cast<Pool*>(pool);
  threads.run([&](int thread, int count) {
    Worker worker(*encoder, *rows, *space, threads, thread, count);
    worker.embed();
    worker.layers();
    worker.fill_memory(*decoder, rows->memory_slots);
  });
}

// Advance sequences by a row each or several; `logits` [wanted][V].
NASH_EXPORT void nash_decode(const Stack* decoder, const Rows* rows, const Workspace* space, void* pool, float* logits) {
  Pool& threads = *static_cast<Pool*>(pool);
  threads.run([&](int thread, int count) {
    Worker worker(*decoder, *rows, *space, threads, thread, count);
    worker.embed();
    worker.layers();
    worker.logits(logits);
  });
}

// Advance every row by its likeliest token, again and again; `logits` [R][V] is room for one step's. Ends before
// `ahead->steps` after a step in which an end token or a score that is not finite came. Returns the steps made.
NASH_EXPORT int32_t nash_decode_ahead(const Stack* decoder, const Rows* rows, const Workspace* space, void* pool, float* logits,
                          const Ahead* ahead) {
  using Clock = std::chrono::steady_clock;
  const auto started = Clock::now();
  const int vocabulary = decoder->output.outputs;
  const int64_t *ends = ahead->end_tokens, *past_ends = ends + ahead->ends;
  for (int step = 0;; step++) {
    nash_decode(decoder, rows, space, pool, logits);
    bool over = false;
    for (int r = 0; r < rows->rows; r++) {
      const Highest best = highest(logits + static_cast<size_t>(r) * vocabulary, vocabulary);
      const size_t place = static_cast<size_t>(step) * rows->rows + r;
      ahead->tokens[place] = best.at;
      ahead->peaks[place] = best.value;
      over |= !std::isfinite(best.value) || std::find(ends, past_ends, best.at) != past_ends;
      rows->tokens[r] = best.at;
      rows->positions[r]++;
    }
    const int made = step + 1;
    if (over || made == ahead->steps) return made;
    const double took = std::chrono::duration<double>(Clock::now() - started).count();
    if (took + took / made > ahead->seconds) return made;
  }
}
}
