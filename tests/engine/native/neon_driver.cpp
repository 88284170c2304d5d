// Repeats calls of the native operator that were recorded on another machine: native_recording.py writes them down.
//
// driver LIBRARY RECORDING RESULTS
//
// A recording is all memory that the calls read, as one image in which pointers are offsets. It names functions and
// holds their arguments as words of 64 bits: on AArch64 the first eight whole numbers and pointers of a call stand in
// the registers x0 to x7 whatever their types are, and its first double in d0, so that no signature need be known here.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifndef __aarch64__
#error "calls are made in AArch64's way"
#endif

namespace {

constexpr int kArguments = 8, kOutputs = 2;

struct Header {
  int64_t image_bytes, pointers, calls;
};
struct Pointer {  // both are offsets in the image
  int64_t at, to;
};
enum Kind : int64_t { kNumber = 0, kOffset = 1, kAnswer = 2 };  // a number; a place in the image; what a call returned
struct Span {
  int64_t at, bytes;
};
struct Call {
  char function[32];
  int64_t kinds[kArguments], arguments[kArguments];
  double number;        // the one argument that is a double, where there is one
  Span outputs[kOutputs];  // what is kept of the image after the call
};

template <class T>
std::vector<T> read(std::FILE* file, size_t count) {
  std::vector<T> all(count);
  if (std::fread(all.data(), sizeof(T), count, file) != count) {
    std::fprintf(stderr, "the recording is too short\n");
    std::exit(1);
  }
  return all;
}

}  // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  std::FILE* recording = std::fopen(arguments[2], "rb");
  std::FILE* results = std::fopen(arguments[3], "wb");
  if (!recording || !results) {
    std::perror("recording or results");
    return 1;
  }
  const Header header = read<Header>(recording, 1)[0];
  char* image = static_cast<char*>(std::aligned_alloc(64, (header.image_bytes + 63) / 64 * 64));
  const std::vector<char> bytes = read<char>(recording, header.image_bytes);
  std::memcpy(image, bytes.data(), bytes.size());
  for (const Pointer& pointer : read<Pointer>(recording, header.pointers)) {
    char* target = image + pointer.to;
    std::memcpy(image + pointer.at, &target, sizeof target);
  }
  std::vector<int64_t> answers;
  for (const Call& call : read<Call>(recording, header.calls)) {
    int64_t x[kArguments];
    for (int i = 0; i < kArguments; i++) {
      const int64_t value = call.arguments[i];
      x[i] = call.kinds[i] == kOffset   ? reinterpret_cast<int64_t>(image + value)
             : call.kinds[i] == kAnswer ? answers[value]
                                        : value;
    }
    using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double);
    const auto function = reinterpret_cast<Function>(dlsym(library, call.function));
    if (!function) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
    answers.push_back(function(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], call.number));
    std::fwrite(&answers.back(), sizeof(int64_t), 1, results);
    for (const Span& output : call.outputs) std::fwrite(image + output.at, 1, output.bytes, results);
  }
  return std::fclose(results) == 0 ? 0 : 1;
}
