// Decides how many threads compute a pass.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

// What a pass costs, estimated before any has run.
struct Work {
  double alone_ns;  // on one thread, roughly
  int barriers;
  int kind;  // only passes of one kind are compared: 0 to kKinds - 1
};

// The number of threads is one of a series of halvings: all, half of them, ..., one. Work and barriers, whose cost was
// measured, give the first count for passes of a size. The rest is learned from how long passes take, because it is not
// known beforehand: memory that a few threads saturate, cores of two speeds, other processes on the same cores.
//
// - If passes are slower, on balance, than with half as many threads, then threads are being taken off their cores
//   while all the others wait: from then on half as many compute. A single slow pass among good ones is ignored.
// - Now and then the next count, up or down, is tried for one to three passes. More threads are kept if they are
//   faster; fewer are kept if they are as fast, which leaves cores to others. Trials that change nothing become rare.
class Pace {
 public:
  static constexpr int kKinds = 2;
  static constexpr int kShortest = 16, kLongest = 1024;  // passes between two trials

  // `barrier_ns`: the cost of a barrier for each of counts(size).
  Pace(int size, const std::vector<double>& barrier_ns) : counts_(counts(size)), barrier_ns_(barrier_ns) {}

  // All, half of them (rounded up), ..., one.
  static std::vector<int> counts(int size) {
    std::vector<int> found{size};
    while (found.back() > 1) found.push_back((found.back() + 1) / 2);
    return found;
  }

  // Threads for the next pass, which begins at `now_ns`; took() follows.
  int threads(const Work& work, double now_ns) {
    alone_ns_ = std::max(work.alone_ns, 1.);
    state_ = &states_[work.kind][std::clamp(static_cast<int>(std::log2(alone_ns_)), 0, kOctaves - 1)];
    State& state = *state_;
    work_ = work;
    now_ns_ = now_ns;
    if (!state.known) {
      state.known = true;
      state.level = best(work);
    }
    if (state.trial < 0 && state.seen[state.level].passes > 0) begin_trial(state);
    return counts_[state.trial < 0 ? state.level : state.trial];
  }

  // Report how long the last requested pass took.
  void took(double ns) {
    State& state = *state_;
    const double cost = ns / alone_ns_;
    now_ns_ += ns;
    if (state.trial >= 0) return judge_trial(state, cost);
    Seen& seen = state.seen[state.level];
    if (has_fewer(state) && seen.passes > kCold) {
      const double half = half_as_many(state);
      state.gain += half - cost;
      const double credit = std::min(kCredit * half, kCredit_ns / alone_ns_);
      state.excess = std::max(-credit, state.excess + std::min(cost - half, kWorst * half));
      if (state.excess > half) {
        // If more threads cost more than they gained overall, wait longer and longer to try them again.
        state.up.interval = state.gain < 0 ? std::min(2 * state.up.interval, kLongest) : kShortest;
        move_to(state, state.level + 1);
        wait(state.up, state.up.interval);
        return;
      }
    }
    learn(seen, cost);
  }

 private:
  static constexpr int kOctaves = 40;  // of work: passes within a factor of two share what is learned
  static constexpr int kMostCounts = 16;
  static constexpr int kCold = 1;  // the first pass touches memory for the first time
  static constexpr int kRecent = 8;
  // A slow pass counts as at most kWorst passes with half as many threads; good ones before it make up for at most
  // kCredit such passes, or kCredit_ns if that is less.
  static constexpr double kWorst = 4, kCredit = 16, kCredit_ns = 1e8;
  static constexpr double kFaster = 0.95;
  static constexpr double kPatience_ns = 3e6;  // a scheduler's time slice

  struct Seen {
    double cost = 0;  // time divided by alone_ns
    int passes = 0;
  };
  struct Trials {  // with more threads, or with fewer
    int interval = kShortest, until = kShortest;  // passes
    double until_ns = 0;
  };
  struct State {
    bool known = false;
    int level = 0;
    double excess = 0;  // time lost recently against half as many threads; below 0: gained
    double gain = 0;    // time gained over them since they were left
    Trials up, down;
    int trial = -1, trial_passes = 0;  // the level on trial
    std::array<Seen, kMostCounts> seen;
  };

  double predicted_ns(const Work& work, int level) const {
    return work.alone_ns / counts_[level] + work.barriers * barrier_ns_[level];
  }
  int best(const Work& work) const {
    int found = static_cast<int>(counts_.size()) - 1;
    for (int level = found - 1; level >= 0; level--) {
      if (predicted_ns(work, level) < kFaster * predicted_ns(work, found)) found = level;
    }
    return found;
  }
  double half_as_many(const State& state) const {
    const Seen& half = state.seen[state.level + 1];
    const double ratio = predicted_ns(work_, state.level + 1) / predicted_ns(work_, state.level);
    return half.passes > 0 ? half.cost : std::clamp(ratio, 1., 2.) * state.seen[state.level].cost;
  }
  bool has_fewer(const State& state) const { return state.level + 1 < static_cast<int>(counts_.size()); }
  void wait(Trials& trials, int passes) {
    trials.until = passes;
    trials.until_ns = now_ns_ + kPatience_ns * passes;
  }
  void move_to(State& state, int level) {
    state.level = level;
    state.excess = state.gain = 0;
    state.down.interval = kShortest;
    wait(state.up, kShortest);
    wait(state.down, kShortest);
  }
  void begin_trial(State& state) {
    // Long passes are few: whatever slowed one is over long before the sixteenth pass after it.
    if (state.level > 0 && (--state.up.until <= 0 || now_ns_ >= state.up.until_ns)) {
      state.trial = state.level - 1;
      state.trial_passes = -1;  // threads that slept arrive late at the first
    } else if (has_fewer(state) && --state.down.until <= 0) {
      state.trial = state.level + 1;
      state.trial_passes = 0;
    }
  }
  // One pass that is not better ends a trial; two better ones make it the new level.
  void judge_trial(State& state, double cost) {
    if (++state.trial_passes == 0) return;
    const int level = state.trial;
    const bool more = level < state.level;
    const double now = state.seen[state.level].cost;
    const bool better = cost < (more ? kFaster * now : now);
    learn(state.seen[level], cost);
    if (better && state.trial_passes < 2) return;
    state.trial = -1;
    if (better) {
      state.seen[level] = {cost, kCold + 1};
      move_to(state, level);
    } else {
      Trials& trials = more ? state.up : state.down;
      trials.interval = std::min(2 * trials.interval, kLongest);
      wait(trials, trials.interval);
    }
  }
  static void learn(Seen& seen, double cost) {
    seen.passes++;
    if (seen.passes <= kCold + 1) {
      seen.cost = seen.passes == 1 ? cost : std::min(seen.cost, cost);
    } else {  // the mean of the last few; a single slow pass says little
      seen.cost += (std::min(cost, 2 * seen.cost) - seen.cost) / std::min(seen.passes, kRecent);
    }
  }

  const std::vector<int> counts_;
  const std::vector<double> barrier_ns_;
  std::array<std::array<State, kOctaves>, kKinds> states_;
  State* state_ = nullptr;
  Work work_{};
  double alone_ns_ = 1, now_ns_ = 0;
};
