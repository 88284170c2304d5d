#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

constexpr int kSpins = 1000;  // some ten microseconds; then the processor may be needed by somebody else

// Tell the processor that this thread waits in a loop.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that run one function together and meet at barriers within it.
//
// On a processor that others want too, one of them is taken off it now and then, for milliseconds, and the others wait
// at the next barrier: several threads are then slower than one. So the first thread watches how much of a run it
// waits. After a run of mostly waiting it works alone for a while, longer each time that nothing has changed. What is
// computed does not depend on how many compute it.
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

  // Runs function(thread, threads) in all threads, or in the caller's alone.
  template <class F>
  void run(F&& function) {
    if (size_ == 1 || alone_ > 0) {
      if (alone_ > 0) alone_--;
      active_ = 1;
      function(0, 1);
      return;
    }
    active_ = size_;
    job_ = [](void* f, int thread, int threads) { (*static_cast<std::remove_reference_t<F>*>(f))(thread, threads); };
    argument_ = &function;
    left_.store(size_ - 1, std::memory_order_relaxed);
    waited_ = 0;
    const int64_t started = now_ns();
    wake();
    function(0, size_);
    wait(0, [this] { return left_.load(std::memory_order_acquire) == 0; });
    judge(now_ns() - started);
  }

  void barrier(int thread) {
    if (active_ == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      wait(thread, [&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
  }

 private:
  static constexpr int kShortest = 16, kLongest = 1024;  // runs alone

  static int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  template <class Done>
  void wait(int thread, Done&& done) {
    const int64_t started = now_ns();
    for (int spins = 0; !done(); spins++) {
      if (spins < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
    if (thread == 0) waited_ += now_ns() - started;
  }
  void judge(int64_t took) {
    if (2 * waited_ < took) {
      next_alone_ = kShortest;
    } else {
      alone_ = next_alone_;
      next_alone_ = std::min(2 * next_alone_, kLongest);
    }
  }
  void wake() {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  void work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      for (int spins = 0; spins < kSpins && generation_.load(std::memory_order_acquire) == seen; spins++) relax();
      generation_.wait(seen, std::memory_order_acquire);
      seen++;
      if (stop_) return;
      job_(argument_, thread, size_);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int size_;
  int active_ = 1;  // threads of this run
  int alone_ = 0, next_alone_ = kShortest;
  int64_t waited_ = 0;
  void (*job_)(void*, int, int) = nullptr;
  void* argument_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> left_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};
