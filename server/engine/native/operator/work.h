// The rough cost of passes on one thread, so that a pool can tell how many threads pay off. Pace corrects it by what it
// sees; an error by a factor of two moves the first guess by the square root of two.
#pragma once

#include <algorithm>

#include "abi.h"
#include "pace.h"

class WorkOfPass {
 public:
  // `own_rows`: up to this many rows, each thread converts a matrix's inputs for itself, without a barrier.
  WorkOfPass(const Stack& stack, const Rows& rows, int own_rows)
      : stack_(stack), rows_(rows), conversion_(rows.rows <= own_rows ? 0 : 1) {}

  WorkOfPass& layers() {
    double own_keys = 0, source_keys = 0;  // of all rows
    for (int r = 0; r < rows_.rows; r++) {
      source_keys += rows_.lengths[r];
      own_keys += stack_.causal ? rows_.positions[r] + 1 : rows_.lengths[r];
    }
    barriers_++;  // after the embedding
    for (int i = 0; i < stack_.layers; i++) {
      const Layer& layer = stack_.layer[i];
      attention(layer.self, own_keys, true);
      attention(layer.cross, source_keys, false);
      feed_forward(layer.ffn);
    }
    return *this;
  }
  // The two parts of an encoder layer.
  WorkOfPass& keys_values(const Layer& layer) {
    if (layer.self.out.outputs && layer.self.heads) matrix(layer.self.keys_values, rows_.rows);
    barriers_ += conversion_ + 1;
    return *this;
  }
  WorkOfPass& beyond_keys_values(const Layer& layer) {
    double keys = 0;
    for (int r = 0; r < rows_.rows; r++) keys += rows_.lengths[r];
    attention(layer.self, keys, false);
    feed_forward(layer.ffn);
    return *this;
  }
  // Keys and values of a decoder's cross-attention.
  WorkOfPass& memory(const Stack& decoder) {
    for (int i = 0; i < decoder.layers; i++) matrix(decoder.layer[i].cross.keys_values, rows_.rows);
    barriers_ += conversion_;
    return *this;
  }
  WorkOfPass& logits() {
    matrix(stack_.output, rows_.wanted);
    barriers_ += conversion_;
    return *this;
  }

  Work sum() const { return {ns_, barriers_ + 1, stack_.causal ? 0 : 1}; }  // plus the pool's own barrier at the end

 private:
  // Per core and nanosecond: bytes of weights from memory, and multiply-adds.
  static constexpr double kBytes = 20, kFloats = 30, kHalves = 50, kInts = 100;

  void matrix(const Matrix& m, int rows) {
    const double count = static_cast<double>(m.outputs) * m.inputs;
    const double size = m.dtype == kFloat32 ? 4 : m.dtype == kBFloat16 ? 2 : 1;
    const double rate = m.dtype == kFloat32 ? kFloats : m.dtype == kBFloat16 ? kHalves : kInts;
    ns_ += std::max(size * count / kBytes, rows * count / rate);
  }
  void attention(const Attention& a, double keys, bool own) {
    if (!a.out.outputs) return;
    if (a.heads) {
      matrix(a.queries, rows_.rows);
      if (own) matrix(a.keys_values, rows_.rows);
      ns_ += 2 * keys * a.heads * stack_.head_dim / kFloats;
      barriers_ += conversion_ + 2;
    }
    residual(a.out);
  }
  void feed_forward(const FeedForward& ffn) {
    if (!ffn.out.outputs) return;
    matrix(ffn.gate, rows_.rows);
    if (ffn.into.outputs) {
      matrix(ffn.into, rows_.rows);
      barriers_ += conversion_ + 1;
    }
    residual(ffn.out);
  }
  void residual(const Matrix& m) {
    matrix(m, rows_.rows);
    barriers_ += (m.dtype == kFloat32 ? 0 : conversion_) + (stack_.norm_first ? 1 : 2);  // float32 is not converted
  }

  const Stack& stack_;
  const Rows& rows_;
  const int conversion_;
  double ns_ = 0;
  int barriers_ = 0;
};
