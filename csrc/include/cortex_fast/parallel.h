// Loops over ranges and tasks, run by OpenMP threads where the build has OpenMP.
//
// The caller passes the number of threads, so the core neither reads nor changes a global setting. Results do not
// depend on which thread runs which range: bodies write disjoint memory, or add integers atomically.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace cortex_fast {

// The number of ranges that parallel_ranges makes of `count` items: for scratch memory, allocated before the loop.
inline int range_count(std::int64_t count, int threads) {
  return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(count, threads)));
}

// Calls body(range, begin, end) for range = 0 .. range_count(count, threads) - 1; the ranges partition [0, count) in
// order and differ by at most one item in length. The body must not throw.
template <typename Body>
void parallel_ranges(std::int64_t count, int threads, const Body& body) {
  const int ranges = range_count(count, threads);
#ifdef _OPENMP
#pragma omp parallel for num_threads(ranges) schedule(static) if (ranges > 1)
#endif
  for (int range = 0; range < ranges; ++range) {
    body(range, count * range / ranges, count * (range + 1) / ranges);
  }
}

// parallel_tasks with body(worker, task), worker in [0, range_count(count, threads)): for scratch memory of a worker.
template <typename Body>
void parallel_workers(std::int64_t count, int threads, const Body& body) {
  const int used = range_count(count, threads);
#ifdef _OPENMP
#pragma omp parallel for num_threads(used) schedule(dynamic) if (used > 1)
  for (std::int64_t task = 0; task < count; ++task) body(used > 1 ? omp_get_thread_num() : 0, task);
#else
  (void)used;
  for (std::int64_t task = 0; task < count; ++task) body(0, task);
#endif
}

// Calls body(task) for task = 0 .. count - 1, each on any free thread. The body must not throw.
template <typename Body>
void parallel_tasks(std::int64_t count, int threads, const Body& body) {
#ifdef _OPENMP
  const int used = range_count(count, threads);
#pragma omp parallel for num_threads(used) schedule(dynamic) if (used > 1)
#else
  (void)threads;
#endif
  for (std::int64_t task = 0; task < count; ++task) body(task);
}

}  // namespace cortex_fast
