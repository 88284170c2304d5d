// The operator's threads by themselves, for test_pool.py: no instructions of any kind of processor are needed.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "pool.h"
#include "share.h"

extern "C" {

void divide_evenly(int32_t count, int32_t thread, int32_t threads, int32_t* begin_and_end) {
  const Share own = share(count, thread, threads);
  begin_and_end[0] = own.begin;
  begin_and_end[1] = own.end;
}

// Counts [tiles][rows] how often each output is computed, and [threads] how many are whose, where nobody takes from others.
void divide_products(int32_t tiles, int32_t rows, int32_t block, int32_t threads, int32_t* computed, int32_t* loads) {
  for (int thread = 0; thread < threads; thread++) {
    const Division division(tiles, rows, block, thread, threads);
    division.each([&](int tile, Share own) {
      for (int row = own.begin; row < own.end; row++) computed[tile * rows + row]++;
      loads[thread] += own.end - own.begin;
    });
  }
}

// Outputs that were not computed exactly once, in so many runs of so many divisions each; thread 1 is slow. `loads`
// [size]: the rows that each thread had in all.
int32_t share_products(int32_t size, const int32_t* domains, int32_t tiles, int32_t rows, int32_t divisions, int32_t runs,
                       int32_t slow_us, int64_t* loads) {
  Placement placement;
  if (domains) placement.domains.assign(domains, domains + size);
  Pool pool(size, placement);
  pool.hold(size);
  std::vector<std::atomic<int32_t>> computed(tiles * rows);
  int32_t wrong = 0;
  for (int run = 0; run < runs; run++) {
    for (auto& count : computed) count = 0;
    pool.run(Work{}, [&](int thread, int threads) {
      for (int i = 0; i < divisions; i++) {
        const Sharing sharing = pool.sharing(thread, i);
        const Division division(tiles, rows, 8, thread, threads, &sharing);
        division.each([&](int tile, Share own) {
          for (int row = own.begin; row < own.end; row++) computed[tile * rows + row]++;
          loads[thread] += own.end - own.begin;
          if (thread == 1 && slow_us) std::this_thread::sleep_for(std::chrono::microseconds(slow_us));
        });
        pool.barrier(thread);
      }
    });
    for (const auto& count : computed) wrong += count != divisions;
  }
  return wrong;
}

// How often a thread saw another one behind it or ahead of it after a barrier, in runs of all counts of threads.
int32_t disagreements(int32_t size, const int32_t* domains, uint32_t first_phase, int32_t barriers) {
  Placement placement;
  if (domains) placement.domains.assign(domains, domains + size);
  Pool pool(size, placement, first_phase);
  std::atomic<int32_t> wrong{0}, ran{0};
  std::vector<int32_t> marks(size, 0);  // plain, so that ThreadSanitizer sees what the barrier orders
  int32_t round = 0;
  for (int count = 1; count <= size; count = count < 9 ? count + 1 : std::max(count + 1, std::min(size, count + 37))) {
    pool.hold(count);
    ran = 0;
    pool.run(Work{}, [&](int thread, int threads) {
      ran++;
      for (int i = 1; i <= barriers; i++) {
        marks[thread] = round + i;
        pool.barrier(thread);
        for (int other = 0; other < threads; other++) wrong += marks[other] != round + i;
        pool.barrier(thread);
      }
    });
    round += barriers;
    wrong += ran != count || pool.active() != count;
  }
  return wrong;
}

// What a child does with its parent's pool: 0 where it computes and ends; the parent's goes on.
int32_t after_fork(int32_t size) {
  Pool* pool = new Pool(size);
  pool->hold(size);
  const auto sum_of = [&] {
    std::atomic<int> sum{0};
    pool->run(Work{}, [&](int thread, int threads) {
      for (int i = share(100, thread, threads).begin; i < share(100, thread, threads).end; i++) sum += i;
      pool->barrier(thread);
    });
    return sum.load();
  };
  if (sum_of() != 4950) return 1;
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    const bool right = sum_of() == 4950 && pool->active() == 1;
    delete pool;
    _exit(right ? 0 : 2);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 3;
  if (sum_of() != 4950 || pool->active() != size) return 4;
  delete pool;
  return 0;
}

void* pace_create(int32_t size, const double* barrier_ns) {
  return new Pace(size, std::vector<double>(barrier_ns, barrier_ns + Pace::counts(size).size()));
}
void pace_destroy(void* pace) { delete static_cast<Pace*>(pace); }
int32_t pace_threads(void* pace, double alone_ns, int32_t barriers, int32_t kind, double now_ns) {
  return static_cast<Pace*>(pace)->threads(Work{alone_ns, barriers, kind}, now_ns);
}
void pace_took(void* pace, double ns) { static_cast<Pace*>(pace)->took(ns); }
}
