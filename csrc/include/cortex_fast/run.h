// How a kernel runs: by how many threads, and with which of the compiled instruction sets. Named by the caller at each
// call, so that the core asks for and changes no global setting.
#pragma once

#include <cstddef>
#include <vector>

namespace cortex_fast {

// The operators' vector code is compiled once for each level (CMakeLists.txt). kBaseline is what every processor of the
// architecture has: SSE2 on x86-64, NEON on ARM.
enum class Level { kBaseline, kAvx2, kAvx512 };

struct Run {
  int threads;
  Level level;
};

// Asks for large pages under memory that is about to be written for the first time: a hint, where the system takes it.
// Filling 131 MB of fresh memory is else mostly the kernel's work, page by page of 4 KB.
void advise_large_pages(void* memory, std::size_t bytes);

// The levels that were compiled in and that this processor has, lowest first.
std::vector<Level> levels();

}  // namespace cortex_fast
