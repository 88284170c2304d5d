// The structures passed from Python: library.py has the same ones.
#pragma once

#include <cstdint>

extern "C" {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kInt4 = 3 };
enum Activation : int32_t { kRelu = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3 };

// A linear map: absent without outputs, and only a bias without inputs.
struct Matrix {
  int32_t outputs, inputs, dtype, reserved;
  const void* weights;
  const float* scales;     // int8: [O rounded up to 32]
  const int32_t* offsets;  // int8: [O rounded up to 32]
  const float* bias;       // [O rounded up to 32] or null
};

// The norm's own weights; null if there is no norm, or if they are folded into the matrices that read it.
struct Norm {
  const float* gain;
  const float* shift;
};

// Absent without `out`; without heads, only out's bias and the norm after it are left.
struct Attention {
  int32_t heads, reserved;
  Matrix queries;      // [H*E]
  Matrix keys_values;  // keys, then values, each [H*E]; for cross-attention, from the encoder's output
  Matrix out;
  Norm after;     // in a post-norm layer
  void* keys;
  void* values;
  int64_t slot_stride, head_stride;  // numbers from one slot to the next, and within it from one head to the next
  const float* bias;  // null, or [H][2*reach] by distance: key t and a query at p use index reach - 1 - p + t
  int64_t reach;
};

struct FeedForward {
  Matrix gate;  // absent if the layer is not gated
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
  int32_t norm_first;  // else after the residual sum
  int32_t causal;      // a decoder
  int32_t half;        // embedding, keys and values in bfloat16, else in float32
  float eps, embedding_scale;
  const Layer* layer;
  const void* embedding;   // [V][D]
  const float* positions;  // [..][D] or null
  int64_t unplaced_token;  // gets no position; -1 if every token does
  Norm embedding_norm;
  Matrix output;
};

struct Rows {
  int32_t rows, wanted;
  int64_t* tokens;
  int32_t* positions;  // within the sequence
  const int32_t* slots;
  const int32_t* lengths;       // positions of the row's source
  const int32_t* memory_slots;  // where the source is cached for cross-attention
  const int32_t* wanted_rows;   // decoder: rows whose logits are requested
};

// Memory of a pass, for the most rows it may have.
struct Workspace {
  float* hidden;     // [R][D]
  float* queries;    // [R][widest attention]
  float* context;    // [R][widest attention]
  float* units;      // [R][widest feed-forward]
  uint8_t* inputs;   // [R][widest input] in the form matrices take
  float* scales;     // [R]
  float* scores;     // [threads][kQueries][score_count]: the longest row of scores, plus a query
  uint8_t* private_inputs;  // [threads][kPrivateRows][widest input]
  int32_t input_bytes, score_count;
};

// The progress of an encoder pass. Each part goes over all rows in blocks; the two middle parts run once per layer.
enum Part : int32_t { kEmbedding = 0, kKeysValues = 1, kBeyond = 2, kMemory = 3 };
struct Progress {
  int32_t part, layer, row;  // what comes next
  int32_t block;             // most rows done together
  double row_seconds[4];     // recent time per row, by part; 0 before the first
};

// Greedy steps of all rows, one after the other, without looking at results in between.
struct Ahead {
  int32_t steps;  // at most
  int32_t ends;   // number of end tokens
  const int64_t* end_tokens;
  double seconds;   // no step begins that would probably end later
  int64_t* tokens;  // [steps][R]: the chosen tokens
  float* max_logits;  // [steps][R]: their logits; NaN if any logit of the row is
};
}
