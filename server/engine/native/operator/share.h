// How a pass is divided among threads. No result depends on it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

struct Share {
  int begin, end;
};

// Shares differ by at most one, and the first threads have the larger ones: the caller is never idle while others work,
// and if there is less to do than there are threads, the last ones get nothing.
inline Share share(int count, int thread, int threads) {
  const int each = count / threads, rest = count % threads;
  const int begin = thread * each + std::min(thread, rest);
  return {begin, begin + each + (thread < rest ? 1 : 0)};
}

// What is left of one thread's share of a division: the division's number, and a range of units. If the number is that
// of an earlier division, nothing of the share has been taken yet.
struct alignas(128) Left {
  static constexpr int kUnitBits = 18, kNumberBits = 64 - 2 * kUnitBits;
  std::atomic<uint64_t> word{0};

  // Take half of what is left of `whole`, at least one unit: from its front or its back. Empty if nothing is left.
  Share take(uint64_t number, Share whole, bool front) {
    uint64_t seen = word.load(std::memory_order_relaxed);
    for (;;) {
      const Share left = seen >> (2 * kUnitBits) == number ? unpacked(seen) : whole;
      if (left.begin >= left.end) return {0, 0};
      const int count = (left.end - left.begin + 1) / 2;
      const Share taken = front ? Share{left.begin, left.begin + count} : Share{left.end - count, left.end};
      const Share rest = front ? Share{taken.end, left.end} : Share{left.begin, taken.begin};
      // Barriers order the computation; this only decides who does it.
      if (word.compare_exchange_weak(seen, packed(number, rest), std::memory_order_relaxed)) return taken;
    }
  }

 private:
  static uint64_t packed(uint64_t number, Share s) {
    return number << (2 * kUnitBits) | static_cast<uint64_t>(s.begin) << kUnitBits | static_cast<uint64_t>(s.end);
  }
  static Share unpacked(uint64_t word) {
    constexpr uint64_t mask = (uint64_t{1} << kUnitBits) - 1;
    return {static_cast<int>(word >> kUnitBits & mask), static_cast<int>(word & mask)};
  }
};

// Threads that may take from each other: those of one cache domain, from `first` to before `last`. `number` is
// different for every division, and the same for all threads.
struct Sharing {
  Left* left;  // of each thread
  int first, last;
  uint64_t number;
};

// A thread's part of the products between two barriers: all rows by the tiles of all their matrices, numbered in order.
//
// If tiles divide evenly, only tiles are divided, because each weight is then read by one thread. If not (16 tiles
// among 24 threads), rows are divided too, in whole blocks, if that helps: more threads work, and each reads its tiles
// for itself. Sums over inputs are never divided: their order, and so the last bit, would depend on the thread count.
//
// A thread that is done takes unstarted work from threads that share a cache with it: on a machine with other work, now
// one processor is slower, now another. With few rows, a unit takes less time than the search for one.
class Division {
 public:
  Division(int tiles, int rows, int block, int thread, int threads, const Sharing* sharing = nullptr)
      : rows_(rows), block_(block), blocks_((rows + block - 1) / block), thread_(thread), threads_(threads) {
    if (tiles % threads != 0) {
      int64_t least = kFull * largest(tiles, threads);
      for (int groups = 2; groups <= blocks_ && static_cast<int64_t>(tiles) * groups < kMostUnits; groups *= 2) {
        // The longest share, in tiles for all rows; plus a tenth for weights that several threads read.
        const int64_t longest = (kFull + kFull / 10) * largest(tiles * static_cast<int64_t>(groups), threads) / groups;
        if (longest < least) {
          least = longest;
          groups_ = groups;
        }
      }
    }
    units_ = tiles * groups_;
    if (sharing && threads > 1 && rows >= kFewestRows && units_ < kMostUnits) sharing_ = *sharing;
  }

  // function(tile, rows) for this thread's part.
  template <class F>
  void each(F&& function) const {
    const Share own = share(units_, thread_, threads_);
    if (!sharing_.left) return each_of(own, function);
    for (Share taken; (taken = take(thread_, own, true)).end > 0;) each_of(taken, function);
    const int count = sharing_.last - sharing_.first;
    for (int i = 1; i < count; i++) {
      const int other = sharing_.first + (thread_ - sharing_.first + i) % count;
      const Share theirs = share(units_, other, threads_);
      for (Share taken; (taken = take(other, theirs, false)).end > 0;) each_of(taken, function);
    }
  }

 private:
  static constexpr int64_t kFull = 1000;
  static constexpr int kMostUnits = 1 << Left::kUnitBits;
  static constexpr int kFewestRows = 16;

  Share take(int thread, Share whole, bool front) const {
    return sharing_.left[thread].take(sharing_.number, whole, front);
  }

  template <class F>
  void each_of(Share units, F& function) const {
    for (int begin = units.begin; begin < units.end;) {
      const int tile = begin / groups_, stop = std::min(units.end, (tile + 1) * groups_);
      const Share rows{row(begin - tile * groups_), row(stop - tile * groups_)};
      if (rows.begin < rows.end) function(tile, rows);
      begin = stop;
    }
  }

  static int64_t largest(int64_t count, int threads) { return (count + threads - 1) / threads; }
  int row(int group) const {
    return std::min(rows_, static_cast<int>(static_cast<int64_t>(blocks_) * group / groups_) * block_);
  }

  const int rows_, block_, blocks_, thread_, threads_;
  int groups_ = 1;  // of rows
  int units_ = 0;   // one tile by one group of rows each
  Sharing sharing_{};
};
