#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "avx512.h"

constexpr int kSpins = 1000;  // some ten microseconds; then the processor may be needed by somebody else

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
