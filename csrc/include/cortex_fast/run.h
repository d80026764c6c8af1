// How a kernel runs: by how many threads, and with which of the compiled instruction sets. The caller passes it at each
// call, so the core neither reads nor changes a global setting.
#pragma once

#include <cstddef>
#include <vector>

namespace cortex_fast {

// The operators' vector code is compiled once for each level (CMakeLists.txt). Every processor of the architecture has
// kBaseline: SSE2 on x86-64, NEON on ARM.
enum class Level { kBaseline, kAvx2, kAvx512 };

struct Run {
  int threads;
  Level level;
};

// Asks for large pages under memory that is about to be written for the first time: a hint, if the system takes it.
// Otherwise filling 131 MB of fresh memory is mostly the operating system's work, page by page of 4 KB.
void advise_large_pages(void* memory, std::size_t bytes);

// The levels that were compiled in and that this processor has, lowest first.
std::vector<Level> levels();

}  // namespace cortex_fast
