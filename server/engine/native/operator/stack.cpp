// One pass of an encoder or decoder stack over rows of tokens, on CPUs; simd.h says which CPUs, and how.
//
// A row is one token of one sequence: its place in the vocabulary, its position, the cache slot of its sequence. A
// decode step is one row per sequence; a decoder prefix, or a whole source in the encoder, is several rows of a slot.
//
// Why one operator for the whole pass: a step of a small model is hundreds of operations of a few microseconds, and a
// library call around each costs more than the operation. Here threads wake once per pass and meet at barriers that
// spin. Each matrix streams through memory once, in the order in which it is stored.
//
// Axes: R rows, I inputs, O outputs, H heads, E width of a head, C capacity of a slot in positions.
// Weights: tiles of 32 outputs, each contiguous: float32 [I][32], bfloat16 [I/2][32][2], int8 [I/4][32][4].
// Caches of each slot and head are laid out so that scores of 16 keys need no horizontal sum: in float32 keys
// [C/16][E][16] and values [C][E]; in bfloat16, whose instructions (vdpbf16ps, bfdot) take pairs, keys
// [C/16][E/2][16][2] and values [C/2][E][2], E rounded up to even.
//
// int8: weights symmetric per output, activations symmetric per row. vpdpbusd needs one side unsigned: there, 128 is
// added to activations, and `offsets` subtracts 128 * sum of weights again. A row's scale depends on that row alone, so
// its neighbours in a batch never change its result.
//
// int4: weights in groups of 32 inputs with a scale each (matrix.h has the layout), rows as signed bytes. The
// instruction's unsigned side is the weights', with 8 added. That adds to a group's products 8 times the sum of the
// row's numbers there, and the row's form carries the correction. A group's sum is exact; groups are added in float32.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>

#include "abi.h"
#include "attention.h"
#include "matrix.h"
#include "numbers.h"
#include "pool.h"
#include "share.h"
#include "work.h"

namespace {

constexpr int kQueries = 4;  // queries that read keys and values together
constexpr int kFewestRows = 16;  // of a block of a source: fewer would read all weights for too little work
constexpr int kPrivateRows = 4;  // up to this many, converting all of them in each thread is cheaper than a barrier

// One thread's part of a pass. All threads of a run call the functions in the same order.
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

  // The two parts of an encoder layer. All rows of a source finish the first before any of them begins the second;
  // within a part, rows do not need each other.
  void keys_values(const Layer& layer) {
    if (layer.self.out.outputs && layer.self.heads) {
      const Inputs in = layer_inputs(layer.self.keys_values);
      divide(tiles(layer.self.keys_values), rows_.rows).each([&](int tile, Share rows) {
        project_keys_values(layer.self, rows_.slots, in, tile, rows);
      });
      pool_.barrier(thread_);
    }
  }
  void beyond_keys_values(const Layer& layer) {
    if (layer.self.out.outputs) {
      if (layer.self.heads) {
        const Inputs in = layer_inputs(layer.self.queries);
        divide(tiles(layer.self.queries), rows_.rows).each([&](int tile, Share rows) {
          project_queries(layer.self, in, tile, rows);
        });
        pool_.barrier(thread_);
        attend_to_own(layer.self);
      } else {
        self_attention(layer.self);
      }
    }
    if (layer.ffn.out.outputs) feed_forward(layer.ffn);
  }

  // Keys and values of the encoder's rows, into a decoder's slots. Their matrices all take the rows in one form.
  void fill_memory(const Stack& decoder, const int32_t* slots) {
    int all = 0;
    const Matrix* any = nullptr;
    for (int i = 0; i < decoder.layers; i++) {
      const Matrix& m = decoder.layer[i].cross.keys_values;
      all += tiles(m);
      if (decoder.layer[i].cross.heads) any = &m;
    }
    if (!any) return;
    const Inputs in = layer_inputs(*any);
    divide(all, rows_.rows).each([&](int tile, Share rows) {
      int layer = 0;
      for (; tile >= tiles(decoder.layer[layer].cross.keys_values); layer++) {
        tile -= tiles(decoder.layer[layer].cross.keys_values);
      }
      project_keys_values(decoder.layer[layer].cross, slots, in, tile, rows);
    });
  }

  void logits(float* out) {
    const int vocabulary = stack_.output.outputs;
    const Inputs in =
        inputs(stack_.output, space_.hidden, stack_.width, rows_.wanted, rows_.wanted_rows, stack_.norm_first);
    product(stack_.output, in, divide(tiles(stack_.output), rows_.wanted), [&](int r, int column, Floats v) {
      store(out + static_cast<size_t>(r) * vocabulary + column, v, vocabulary - column);
    });
  }

 private:
  float* hidden(int row) const { return space_.hidden + static_cast<size_t>(row) * stack_.width; }
  Division divide(int tiles, int rows) {
    const Sharing sharing = pool_.sharing(thread_, divisions_++);
    return {tiles, rows, kBlock, thread_, threads_, &sharing};
  }

  template <class F>
  void each_row(int rows, F&& f) {
    const Share own = share(rows, thread_, threads_);
    for (int r = own.begin; r < own.end; r++) f(r);
  }

  // Rows of `x` [.][width] in the form that `m` takes, normed first if `norm`; the `selected` rows, or all.
  Inputs inputs(const Matrix& m, const float* x, int width, int rows, const int32_t* selected, bool norm) {
    if (m.dtype == kFloat32 && !selected && !norm) {  // unchanged
      return {reinterpret_cast<const uint8_t*>(x), width * sizeof(float), nullptr};
    }
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

  void project_queries(const Attention& attention, const Inputs& in, int tile, Share rows) {
    const int inner = attention.queries.outputs;
    const auto use = [&](int r, int column, Floats v) {
      store(space_.queries + static_cast<size_t>(r) * inner + column, v, inner - column);
    };
    product_tile(attention.queries, in, rows, tile, use);
  }

  void project_keys_values(const Attention& attention, const int32_t* slots, const Inputs& in, int tile, Share rows) {
    const auto use = [&](int r, int column, Floats v) {
      if (stack_.half) {
        cache_keys_values<uint16_t>(attention, stack_.head_dim, slots[r], rows_.positions[r], column, v);
      } else {
        cache_keys_values<float>(attention, stack_.head_dim, slots[r], rows_.positions[r], column, v);
      }
    };
    // Two positions share the words of a bfloat16 value, and the first writes all of them: one thread must do both.
    const auto whole = [&](int r) {
      const bool second = r > 0 && r < rows_.rows && rows_.positions[r] % 2 == 1 && slots[r] == slots[r - 1];
      return second ? r + 1 : r;
    };
    product_tile(attention.keys_values, in, {whole(rows.begin), whole(rows.end)}, tile, use);
  }

  // Each row's queries over the first count(row) keys of its slot. Adjacent rows of one slot, a source's or beams over
  // their source, take its keys and values kQueries at a time.
  template <class Count>
  void attend_rows(const Attention& attention, const int32_t* slots, Count&& count) {
    const int heads = attention.heads;
    const bool grouped = rows_.rows >= kQueries && slots[0] == slots[1] && count(0) == count(1);
    const int size = grouped ? kQueries : 1, groups = (rows_.rows + size - 1) / size;
    const Share own = share(groups * heads, thread_, threads_);
    for (int unit = own.begin; unit < own.end; unit++) {
      const int begin = unit / heads * size, end = std::min(begin + size, rows_.rows), head = unit % heads;
      bool alike = end - begin == kQueries;
      for (int r = begin + 1; r < end; r++) {
        alike &= slots[r] == slots[begin] && count(r) == count(begin) && rows_.positions[r] == rows_.positions[r - 1] + 1;
      }
      if (alike) {
        attend_to<kQueries>(attention, slots[begin], begin, head, count(begin));
      } else {
        for (int r = begin; r < end; r++) attend_to<1>(attention, slots[r], r, head, count(r));
      }
    }
    pool_.barrier(thread_);
  }

  template <int Q>
  void attend_to(const Attention& attention, int slot, int row, int head, int count) {
    const int width = stack_.head_dim, inner = attention.heads * width, room = space_.score_count;
    float* scores = space_.scores + static_cast<size_t>(thread_) * kQueries * room;
    const int64_t base = slot * attention.slot_stride + head * attention.head_stride;
    const size_t place = static_cast<size_t>(row) * inner + head * width;
    const float* bias = attention.bias;
    if (bias) bias += (2 * head + 1) * attention.reach - 1 - rows_.positions[row];
    const Queries queries = {space_.queries + place, static_cast<size_t>(inner), bias, space_.context + place};
    const auto attend_in = [&](const auto* keys, const auto* values) {
      const auto* const own = keys + base;
      attend<Q>(queries, own, values + base, own + attention.head_stride, count, width, scores, room);
    };
    if (stack_.half) {
      attend_in(static_cast<const uint16_t*>(attention.keys), static_cast<const uint16_t*>(attention.values));
    } else {
      attend_in(static_cast<const float*>(attention.keys), static_cast<const float*>(attention.values));
    }
  }

  void self_attention(const Attention& attention) {
    if (!attention.heads) return add(attention.out, space_.context, 0, attention.after);
    const Inputs in = layer_inputs(attention.queries);
    const int queries = tiles(attention.queries);
    divide(queries + tiles(attention.keys_values), rows_.rows).each([&](int tile, Share rows) {
      if (tile < queries) {
        project_queries(attention, in, tile, rows);
      } else {
        project_keys_values(attention, rows_.slots, in, tile - queries, rows);
      }
    });
    pool_.barrier(thread_);
    attend_to_own(attention);
  }

  void attend_to_own(const Attention& attention) {
    attend_rows(attention, rows_.slots,
                [&](int r) { return stack_.causal ? rows_.positions[r] + 1 : rows_.lengths[r]; });
    add(attention.out, space_.context, attention.queries.outputs, attention.after);
  }

  Inputs layer_inputs(const Matrix& m) {
    return inputs(m, space_.hidden, stack_.width, rows_.rows, nullptr, stack_.norm_first);
  }

  void cross_attention(const Attention& attention) {
    if (!attention.heads) return add(attention.out, space_.context, 0, attention.after);
    const Inputs in = layer_inputs(attention.queries);
    divide(tiles(attention.queries), rows_.rows).each([&](int tile, Share rows) {
      project_queries(attention, in, tile, rows);
    });
    pool_.barrier(thread_);
    attend_rows(attention, rows_.memory_slots, [&](int r) { return rows_.lengths[r]; });
    add(attention.out, space_.context, attention.queries.outputs, attention.after);
  }

  void feed_forward(const FeedForward& ffn) {
    const int units = ffn.into.outputs;
    if (!units) return add(ffn.out, space_.units, 0, ffn.after);
    const Inputs in = layer_inputs(ffn.into);
    const Matrix& activated = ffn.gate.outputs ? ffn.gate : ffn.into;
    const auto first = [&](int r, int column, Floats v) {
      store(space_.units + static_cast<size_t>(r) * units + column, activate(stack_.activation, v), units - column);
    };
    const auto second = [&](int r, int column, Floats v) {
      float* place = space_.units + static_cast<size_t>(r) * units + column;
      store(place, load(place, units - column) * v, units - column);
    };
    divide(tiles(activated), rows_.rows).each([&](int tile, Share rows) {
      product_tile(activated, in, rows, tile, first);
      if (ffn.gate.outputs) product_tile(ffn.into, in, rows, tile, second);
    });
    pool_.barrier(thread_);
    add(ffn.out, space_.units, units, ffn.after);
  }

  // Add the product to the residual, and norm it in a post-norm layer.
  void add(const Matrix& m, const float* x, int width, const Norm& after) {
    const Inputs in = inputs(m, x, width, rows_.rows, nullptr, false);
    product(m, in, divide(tiles(m), rows_.rows), [&](int r, int column, Floats v) {
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
  int divisions_ = 0;  // of this run, so far
  float private_scales_[kPrivateRows];
};

}  // namespace

extern "C" {
#define NASH_EXPORT __attribute__((visibility("default")))

// Bytes of each structure of abi.h, in its order, for the loader to compare.
NASH_EXPORT void nash_sizes(int32_t* sizes) {
  for (const size_t size : {sizeof(Matrix), sizeof(Norm), sizeof(Attention), sizeof(FeedForward), sizeof(Layer), sizeof(Stack),
                            sizeof(Rows), sizeof(Workspace), sizeof(Progress), sizeof(Ahead)}) {
    *sizes++ = static_cast<int32_t>(size);
  }
}

// Threads that compute together, or null if they cannot be made. `domains` [threads]: the cache domain of each, in
// ascending order, or null. A thread stays on its domain's processors: `cpus` [cpu_count], `cpu_domains` [cpu_count].
NASH_EXPORT void* nash_pool_create(int32_t threads, const int32_t* domains, int32_t cpu_count, const int32_t* cpus,
                       const int32_t* cpu_domains) {
  try {
    Placement placement;
    if (domains) placement.domains.assign(domains, domains + threads);
    for (int thread = 0; domains && cpu_count && thread < threads; thread++) {
      std::vector<int>& own = placement.cpus.emplace_back();
      for (int i = 0; i < cpu_count; i++) {
        if (cpu_domains[i] == domains[thread]) own.push_back(cpus[i]);
      }
    }
    return new Pool(threads, placement);
  } catch (...) {
    return nullptr;
  }
}
NASH_EXPORT void nash_pool_destroy(void* pool) { delete static_cast<Pool*>(pool); }

// From now on, compute with exactly this many threads; 0: with as many as pay off.
NASH_EXPORT void nash_pool_hold(void* pool, int32_t threads) { static_cast<Pool*>(pool)->hold(threads); }

// Threads that computed the last pass.
NASH_EXPORT int32_t nash_pool_active(void* pool) { return static_cast<Pool*>(pool)->active(); }

// Bytes of a matrix's packed weights.
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

// Continue encoding sources until done, or until another block of rows would probably end later than `seconds` from
// now. Keys and values go into the slots `memory_slots` of the decoder's cross-attention. Returns whether the sources
// are encoded; `progress` begins as zeros, except for `block`.
NASH_EXPORT int32_t nash_encode(const Stack* encoder, const Stack* decoder, const Rows* rows, const Workspace* space,
                                void* pool, Progress* progress, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto started = Clock::now();
  Pool& threads = *static_cast<Pool*>(pool);
  for (double now = 0;;) {
    const int begin = progress->row, left = rows->rows - begin;
    double& row_seconds = progress->row_seconds[progress->part];
    int count = std::min(progress->block, left);
    if (std::isfinite(seconds)) {
      const int fewest = std::min(kFewestRows, left);
      const double affordable = row_seconds > 0 ? (seconds - now) / row_seconds : fewest;
      if (affordable < fewest) return 0;
      count = std::min(count, std::max(fewest, static_cast<int>(std::min(affordable, 1e9)) / kBlock * kBlock));
    }
    const Rows block = {count, 0, rows->tokens + begin, rows->positions + begin, rows->slots + begin,
                        rows->lengths + begin, rows->memory_slots + begin, nullptr};
    Workspace its_space = *space;
    its_space.hidden += static_cast<size_t>(begin) * encoder->width;
    WorkOfPass work(*encoder, block, kPrivateRows);
    switch (progress->part) {
      case kKeysValues: work.keys_values(encoder->layer[progress->layer]); break;
      case kBeyond: work.beyond_keys_values(encoder->layer[progress->layer]); break;
      case kMemory: work.memory(*decoder); break;
      default: break;
    }
    threads.run(work.sum(), [&](int thread, int active) {
      Worker worker(*encoder, block, its_space, threads, thread, active);
      switch (progress->part) {
        case kEmbedding: worker.embed(); break;
        case kKeysValues: worker.keys_values(encoder->layer[progress->layer]); break;
        case kBeyond: worker.beyond_keys_values(encoder->layer[progress->layer]); break;
        default: worker.fill_memory(*decoder, block.memory_slots); break;
      }
    });
    const double done = std::chrono::duration<double>(Clock::now() - started).count();
    const double took = (done - now) / count;
    row_seconds = row_seconds > 0 ? (row_seconds + took) / 2 : took;
    progress->row += count;
    if (progress->row == rows->rows) {
      progress->row = 0;
      if (progress->part == kMemory) return 1;
      if (progress->part == kKeysValues) {
        progress->part = kBeyond;
      } else {
        if (progress->part == kBeyond) progress->layer++;
        progress->part = progress->layer < encoder->layers ? kKeysValues : kMemory;
      }
    }
    now = done;
  }
}

// Advance sequences by one or more rows each; `logits` [wanted][V].
NASH_EXPORT void nash_decode(const Stack* decoder, const Rows* rows, const Workspace* space, void* pool, float* logits) {
  Pool& threads = *static_cast<Pool*>(pool);
  const Work work = WorkOfPass(*decoder, *rows, kPrivateRows).layers().logits().sum();
  threads.run(work, [&](int thread, int count) {
    Worker worker(*decoder, *rows, *space, threads, thread, count);
    worker.embed();
    worker.layers();
    worker.logits(logits);
  });
}

// Advance every row by its likeliest token, again and again; `logits` [R][V] has room for one step's. Stops before
// `ahead->steps` after a step with an end token or a score that is not finite. Returns the number of steps made.
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
      ahead->max_logits[place] = best.value;
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
