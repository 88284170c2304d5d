#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include "pace.h"
#include "share.h"

// Tell the processor that this thread is spinning.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Forks between this process and the first one with a pool; a child has only the thread that forked.
inline int& forks() {
  static int count = 0;
  return count;
}

// Where a pool's threads should run.
struct Placement {
  std::vector<int> domains;  // of each thread, in order; threads of a domain share a cache. Empty: unknown
  std::vector<std::vector<int>> cpus;  // of each thread; an empty list leaves the choice to the system
};

// Threads that run one function together and meet at barriers within it. Pace decides how many of them run it, by how
// much there is to do; results must not depend on that number.
//
// Threads form groups of at most eight within one cache domain. They arrive at a barrier, and are released, within
// their group first, so that a cache line that many write travels between a few nearby cores. The threads of a run are
// the first ones, so that half of them are whole groups as well.
//
// A forked child has none of the threads: there, a pool runs everything in its caller.
class Pool {
 public:
  // Throws std::system_error or std::bad_alloc if a thread cannot be made; none is left behind.
  explicit Pool(int size, const Placement& placement = {}, uint32_t first_phase = 0)
      : size_(size), members_(new Member[size]), left_(new Left[size]) {
    watch_forks();
    born_ = forks();
    for (int thread = 0; thread < size; thread++) {
      const bool known = !placement.domains.empty();
      const int begin = groups_.empty() ? 0 : groups_.back().begin;
      if (groups_.empty() || thread - begin == kGroup ||
          (known && placement.domains[thread] != placement.domains[begin])) {
        groups_.push_back({thread, thread});
      }
      groups_.back().end = thread + 1;
      members_[thread].group = static_cast<int>(groups_.size()) - 1;
    }
    meetings_.reset(new Meeting[groups_.size() + 1]);  // one per group, and the last for one thread of each
    for (size_t i = 0; i <= groups_.size(); i++) meetings_[i].phase.store(first_phase, std::memory_order_relaxed);
    try {
      threads_.reserve(size - 1);
      for (int thread = 1; thread < size; thread++) {
        threads_.emplace_back([this, thread] { work(thread); });
        if (!placement.cpus.empty()) keep_on(threads_.back(), placement.cpus[thread]);
      }
      pace_ = std::make_unique<Pace>(size, measure());
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Pool() {
    if (forked()) {
      for (auto& thread : threads_) thread.detach();  // they do not exist here, so they cannot be joined
    } else {
      stop();
    }
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Runs function(thread, threads) in as many threads as pay off; the caller is thread 0.
  template <class F>
  void run(const Work& work, F&& function) {
    if (held_ > 0 || size_ == 1) return run_in(std::max(held_, 1), function);
    const double started_ns = now_ns();
    const int threads = pace_->threads(work, started_ns);
    run_in(threads, function);
    pace_->took(now_ns() - started_ns);
  }

  // From now on, run with exactly this many threads; 0: with as many as pay off.
  void hold(int threads) { held_ = std::min(threads, size_); }

  int size() const { return size_; }
  int active() const { return active_; }  // threads of the last run

  // The threads with which a thread may share the run's division of this index.
  Sharing sharing(int thread, int division) const {
    const Group& group = groups_[members_[thread].group];
    return {left_.get(), group.begin, std::min(group.end, active_), first_number_ + static_cast<uint64_t>(division)};
  }

  // Wait for all threads of the run; afterwards, all of them see what each did before.
  void barrier(int thread) {
    if (active_ == 1) return;
    const int own = members_[thread].group;
    const Group& group = groups_[own];
    const bool several = active_ > groups_[0].end;
    meet(meetings_[own], std::min(group.end, active_) - group.begin, [&] {
      if (several) meet(meetings_[groups_.size()], members_[active_ - 1].group + 1, [] {});
    });
  }

 private:
  static constexpr int kGroup = 8;
  static constexpr double kSpin_ns = 2e4;  // after that, others may need the processor

  struct Group {
    int begin, end;  // threads
  };
  struct alignas(128) Meeting {  // two cache lines, because they are fetched in pairs
    std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};  // counts barriers; wraps around
  };
  struct alignas(128) Member {
    std::atomic<uint32_t> call{0};  // changes when there is a run for this thread
    std::atomic<bool> asleep{false};
    int group = 0;
  };

  static double now_ns() {
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  // The last of `expected` threads to arrive calls last() and releases the others.
  template <class Last>
  void meet(Meeting& meeting, int expected, Last&& last) {
    const uint32_t phase = meeting.phase.load(std::memory_order_relaxed);
    if (meeting.arrived.fetch_add(1, std::memory_order_acq_rel) == expected - 1) {
      meeting.arrived.store(0, std::memory_order_relaxed);
      last();
      meeting.phase.store(phase + 1, std::memory_order_release);
    } else {
      for (int spins = 0; meeting.phase.load(std::memory_order_acquire) == phase; spins++) {
        if (spins < spins_) {
          relax();
        } else {
          std::this_thread::yield();
        }
      }
    }
  }

  template <class F>
  void run_in(int threads, F& function) {
    active_ = forked() ? 1 : threads;
    if (active_ == 1) return function(0, 1);
    number_divisions();
    job_ = [](void* f, int thread, int count) { (*static_cast<std::remove_reference_t<F>*>(f))(thread, count); };
    argument_ = const_cast<void*>(static_cast<const void*>(&function));
    call_others(0);
    function(0, active_);
    barrier(0);
  }
  // Numbers for a run's divisions that no earlier division had, as far as any thread can see.
  void number_divisions() {
    constexpr uint64_t kOfARun = 1 << 14, kEnd = uint64_t{1} << Left::kNumberBits;
    first_number_ += kOfARun;
    if (first_number_ + kOfARun <= kEnd) return;
    for (int thread = 0; thread < size_; thread++) left_[thread].word.store(0, std::memory_order_relaxed);
    first_number_ = kOfARun;
  }
  // Thread 0 calls its own group and the first thread of each other group, which calls the rest of its group.
  void call_others(int thread) {
    const int own = members_[thread].group;
    if (thread == 0) {
      for (size_t i = 1; i < groups_.size() && groups_[i].begin < active_; i++) call(groups_[i].begin);
    }
    if (thread != groups_[own].begin) return;
    for (int other = thread + 1; other < std::min(groups_[own].end, active_); other++) call(other);
  }
  void call(int thread) {
    Member& member = members_[thread];
    member.call.fetch_add(1, std::memory_order_seq_cst);
    if (member.asleep.load(std::memory_order_seq_cst)) member.call.notify_all();
  }
  void work(int thread) {
    Member& member = members_[thread];
    for (uint32_t seen = 0;; seen++) {
      for (int spins = 0; spins < spins_ && member.call.load(std::memory_order_acquire) == seen; spins++) relax();
      if (member.call.load(std::memory_order_acquire) == seen) {
        member.asleep.store(true, std::memory_order_seq_cst);
        member.call.wait(seen, std::memory_order_seq_cst);
        member.asleep.store(false, std::memory_order_relaxed);
      }
      if (stop_.load(std::memory_order_acquire)) return;
      call_others(thread);
      job_(argument_, thread, active_);
      barrier(thread);
    }
  }
  void stop() {
    stop_.store(true, std::memory_order_release);
    for (size_t i = 0; i < threads_.size(); i++) call(static_cast<int>(i) + 1);
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  // Nanoseconds per barrier, including its share of calling all threads, by Pace::counts(size).
  std::vector<double> measure() {
    constexpr int kBarriers = 16, kTurns = 8;
    constexpr double kBudget_ns = 2e6;
    std::vector<int> counts = Pace::counts(size_);
    std::vector<double> found(counts.size(), 0.);
    for (size_t i = counts.size() - 1; i-- > 0;) {
      if (found[i + 1] > kBudget_ns / kBarriers) {  // probably more threads than cores: twice as bad is bad enough
        found[i] = 2 * found[i + 1];
        continue;
      }
      found[i] = std::numeric_limits<double>::infinity();
      const double begun_ns = now_ns();
      for (int turn = 0; turn < kTurns && (turn == 0 || now_ns() - begun_ns < kBudget_ns); turn++) {
        const double started_ns = now_ns();
        auto meet_often = [this](int thread, int) {
          for (int barrier_ = 1; barrier_ < kBarriers; barrier_++) barrier(thread);
        };
        run_in(counts[i], meet_often);
        found[i] = std::min(found[i], (now_ns() - started_ns) / kBarriers);
      }
    }
    return found;
  }

  static int spins() {
    constexpr int kTries = 1000;
    double least_ns = std::numeric_limits<double>::infinity();
    for (int turn = 0; turn < 3; turn++) {
      const double started_ns = now_ns();
      for (int i = 0; i < kTries; i++) relax();
      least_ns = std::min(least_ns, now_ns() - started_ns);
    }
    return static_cast<int>(std::clamp(kTries * kSpin_ns / std::max(least_ns, 1.), 100., 1e5));
  }
  static void keep_on([[maybe_unused]] std::thread& thread, [[maybe_unused]] const std::vector<int>& cpus) {
#if defined(__linux__)
    if (cpus.empty()) return;
    const int most = *std::max_element(cpus.begin(), cpus.end()) + 1;
    cpu_set_t* set = CPU_ALLOC(most);
    if (!set) return;
    CPU_ZERO_S(CPU_ALLOC_SIZE(most), set);
    for (int cpu : cpus) CPU_SET_S(cpu, CPU_ALLOC_SIZE(most), set);
    // Fails if a container has lost some of its processors meanwhile: then the thread runs anywhere.
    pthread_setaffinity_np(thread.native_handle(), CPU_ALLOC_SIZE(most), set);
    CPU_FREE(set);
#endif
  }
  static void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static const int watched = pthread_atfork(nullptr, nullptr, [] { forks()++; });
    (void)watched;
#endif
  }
  bool forked() const { return forks() != born_; }

  const int size_;
  const int spins_ = spins();
  int born_ = 0;
  int held_ = 0;
  int active_ = 1;  // threads of this run
  void (*job_)(void*, int, int) = nullptr;
  void* argument_ = nullptr;
  std::vector<Group> groups_;
  std::unique_ptr<Member[]> members_;
  std::unique_ptr<Left[]> left_;
  uint64_t first_number_ = 0;  // of the divisions of this run
  std::unique_ptr<Meeting[]> meetings_;
  std::atomic<bool> stop_{false};
  std::unique_ptr<Pace> pace_;
  std::vector<std::thread> threads_;
};
