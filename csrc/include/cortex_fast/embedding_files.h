// gather_error of embeddings that lie in files, one an image.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cortex_fast/run.h"

namespace cortex_fast {

// paths: an image each. header: what a file begins with; then come its floats [channels, positions], as this processor
// has them, then its end. tokens and codebook as in GatherError.
struct EmbeddingFiles {
  const char* const* paths;
  const char* header;
  std::size_t header_bytes;
  const std::int32_t* tokens;
  const float* codebook;
  std::int64_t images, channels, positions;
};

// error, known [images]: known is 1 and error as of gather_error where the file is exactly so, and a regular one; else
// known is 0, and error NaN. On the caller's thread alone: who wants more brings them. Throws std::bad_alloc, and
// nothing else.
void embedding_files(const EmbeddingFiles& args, float* error, std::uint8_t* known, Level level);

}  // namespace cortex_fast
