// Bound: the disk; of files that the system holds in memory, one copy out of it (262,272 bytes for 256 channels and 256
// positions) and four calls of the system a file. gather_error then finds the copy in the second cache, for which
// every file is read into the same memory.
#include "cortex_fast/embedding_files.h"

#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#endif

#include "cortex_fast/gather_error.h"

namespace cortex_fast {
namespace {

#ifndef _WIN32

// Whether the file is regular and of `size` bytes, now in `to`.
bool read_open(int file, char* to, std::size_t size) {
  struct stat found;
  if (fstat(file, &found) != 0 || !S_ISREG(found.st_mode)) return false;
  if (static_cast<unsigned long long>(found.st_size) != size) return false;
  std::size_t done = 0;
  while (done < size) {
    const ssize_t count = read(file, to + done, size - done);
    if (count > 0) {
      done += static_cast<std::size_t>(count);
    } else if (count == 0 || errno != EINTR) {
      return false;
    }
  }
  return true;
}

// The same of the file at `path`. A named pipe without a writer would keep an ordinary opening waiting.
bool read_whole(const char* path, char* to, std::size_t size) {
  const int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return false;
  const bool whole = read_open(file, to, size);
  close(file);
  return whole;
}

#else

// The same, and `to` has room for one byte more.
bool read_whole(const char* path, char* to, std::size_t size) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return false;
  std::setvbuf(file, nullptr, _IONBF, 0);
  const std::size_t read = std::fread(to, 1, size + 1, file);
  const bool whole = read == size && std::ferror(file) == 0;
  std::fclose(file);
  return whole;
}

#endif

}  // namespace

void embedding_files(const EmbeddingFiles& args, float* error, std::uint8_t* known, Level level) {
  const auto floats = static_cast<std::size_t>(args.channels * args.positions);
  // the floats where floats may stand, right behind a header of any length
  const std::size_t start = (args.header_bytes + sizeof(float) - 1) / sizeof(float);
  const std::unique_ptr<float[]> memory(new float[start + floats + 1]);
  char* const begin = reinterpret_cast<char*>(memory.get() + start) - args.header_bytes;
  for (std::int64_t image = 0; image < args.images; ++image) {
    error[image] = std::numeric_limits<float>::quiet_NaN();
    known[image] = read_whole(args.paths[image], begin, args.header_bytes + floats * sizeof(float)) &&
                   std::memcmp(begin, args.header, args.header_bytes) == 0;
    if (known[image] == 0) continue;
    gather_error(
        {memory.get() + start, args.tokens + image * args.positions, args.codebook, 1, args.channels, args.positions},
        error + image, {1, level});
  }
}

}  // namespace cortex_fast
