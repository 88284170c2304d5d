// Who computes what: the division of a pass among threads. No result depends on it.
#pragma once

#include <algorithm>
#include <cstdint>

struct Share {
  int begin, end;
};

// Shares differ by one at most, and the first threads have the larger ones: whoever calls is never idle while others
// work, and where there is less to do than there are threads, it is the last ones that go without.
inline Share share(int count, int thread, int threads) {
  const int each = count / threads, rest = count % threads;
  const int begin = thread * each + std::min(thread, rest);
  return {begin, begin + each + (thread < rest ? 1 : 0)};
}

// A thread's part of the products between two barriers: all rows by the tiles of all their matrices, counted through.
//
// Tiles alone are divided where that is even, because each weight is then read by one thread. Where it is not (16 tiles
// among 24 threads), rows are divided as well, in whole blocks: more threads work, and each of them reads its tiles for
// itself. The sum over inputs is never divided: its order, and so its last bit, would depend on the number of threads.
class Division {
 public:
  Division(int tiles, int rows, int block, int thread, int threads)
      : rows_(rows), block_(block), blocks_((rows + block - 1) / block) {
    if (tiles % threads != 0) {
      int64_t least = kFull * largest(tiles, threads);
      for (int groups = 2; groups <= blocks_; groups *= 2) {
        // The longest share, in tiles for all rows; a tenth more for weights that more threads read.
        const int64_t longest = (kFull + kFull / 10) * largest(tiles * static_cast<int64_t>(groups), threads) / groups;
        if (longest < least) {
          least = longest;
          groups_ = groups;
        }
      }
    }
    own_ = share(tiles * groups_, thread, threads);
  }

  // function(tile, rows) for this thread's part of the matrix that has `count` tiles after `first` tiles of others.
  template <class F>
  void each(int first, int count, F&& function) const {
    int begin = std::max(own_.begin, first * groups_);
    const int end = std::min(own_.end, (first + count) * groups_);
    while (begin < end) {
      const int tile = begin / groups_, stop = std::min(end, (tile + 1) * groups_);
      const Share rows{row(begin - tile * groups_), row(stop - tile * groups_)};
      if (rows.begin < rows.end) function(tile - first, rows);
      begin = stop;
    }
  }

 private:
  static constexpr int64_t kFull = 1000;

  static int64_t largest(int64_t count, int threads) { return (count + threads - 1) / threads; }
  int row(int group) const {
    return std::min(rows_, static_cast<int>(static_cast<int64_t>(blocks_) * group / groups_) * block_);
  }

  const int rows_, block_, blocks_;
  int groups_ = 1;  // of rows
  Share own_;
};
