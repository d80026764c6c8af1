// Bound: 4 bytes (2 in half precision) an element written; x is read once for each sample, from cache. Ten rounds of
// Philox for four normals, and a logarithm, a root, a sine and a cosine for two, take about as long on AVX2.
//
// A task is a few quads of channels of one draw. Vectors run over grid positions, which are rows of the stream: the
// four words of a counter then land in four channels, each contiguous. A task's normals serve every image that shares
// its item, and both signs of an antithetic pair.
#include "cortex_fast/smoothgrad_noise.h"

#include <algorithm>

#include "cortex_fast/parallel.h"
#include "cortex_fast/transforms.h"
#include "words.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

constexpr int64_t kQuads = 8;        // of channels, in one task
constexpr int64_t kPositions = 256;  // drawn at once: 4 KB of words and as much of normals
static_assert(kPositions % kLanes == 0 && kPositions % kPack == 0);

struct Normals {
  alignas(64) float of_channel[4][kPositions];
};

void draw_normals(Key key, int64_t quad, int64_t first, int64_t item, int64_t draw, int64_t count, Normals& normals) {
  alignas(64) uint32_t words[4][kPositions];
  uint32_t* const rows[4] = {words[0], words[1], words[2], words[3]};
  words_across_rows(key, static_cast<uint32_t>(quad), static_cast<uint64_t>(first), static_cast<uint32_t>(item),
                    static_cast<uint32_t>(draw), count, rows);
  for (int half = 0; half < 2; ++half) {
    for (int64_t i = 0; i < count; i += kPack) {
      const auto pair = normals_of<Floats>(load_words(words[2 * half] + i), load_words(words[2 * half + 1] + i));
      store_floats(pair.first, normals.of_channel[2 * half] + i);
      store_floats(pair.second, normals.of_channel[2 * half + 1] + i);
    }
  }
}

template <typename T>
void add(const T* x, const float* normals, float scale, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) store(multiply_add(scale, normals[i], load(x[i])), out[i]);
}

// One quad of channels at some positions, for every image of the group and every sample of the draw.
template <typename T>
void write(const NoisyCopies<T>& args, int64_t group, int64_t draw, int64_t quad, int64_t first, int64_t count,
           const Normals& normals, T* out) {
  const int64_t channel = 4 * quad, channels = std::min<int64_t>(4, args.channels - channel);
  const int64_t sample = args.antithetic ? 2 * draw : draw;
  const int64_t signs = args.antithetic ? std::min<int64_t>(2, args.num_samples - sample) : 1;
  for (int64_t i = args.group_starts[group]; i < args.group_starts[group + 1]; ++i) {
    const int64_t image = args.order[i];
    for (int64_t sign = 0; sign < signs; ++sign) {
      const float scale = sign == 0 ? args.sigma[image] : -args.sigma[image];
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t from = (image * args.channels + channel + c) * args.positions + first;
        const int64_t to =
            ((image * args.num_samples + sample + sign) * args.channels + channel + c) * args.positions + first;
        add(args.x + from, normals.of_channel[c], scale, count, out + to);
      }
    }
  }
}

template <typename T>
void add_given(const NoisyCopies<T>& args, T* out, const Run& run) {
  const int64_t size = args.channels * args.positions;
  parallel_tasks(args.batch * args.num_samples, run.threads, [&](int64_t task) {
    const int64_t image = task / args.num_samples;
    add(args.x + image * size, args.normals + task * size, args.sigma[image], size, out + task * size);
  });
}

}  // namespace

template <typename T>
void smoothgrad_noise(const NoisyCopies<T>& args, T* out, const Run& run) {
  if (args.normals != nullptr) return add_given(args, out, run);
  const Key key = stream_key(args.seed, Stream::kNormal);
  const int64_t quads = (args.channels + 3) / 4;
  const int64_t draws = args.antithetic ? (args.num_samples + 1) / 2 : args.num_samples;
  const int64_t first_draw = args.antithetic ? args.first_sample / 2 : args.first_sample;
  const int64_t tasks = (quads + kQuads - 1) / kQuads;
  parallel_tasks(args.groups * draws * tasks, run.threads, [&](int64_t task) {
    const int64_t group = task / tasks / draws, draw = task / tasks % draws;
    const int64_t begin = task % tasks * kQuads, end = std::min(quads, begin + kQuads);
    Normals normals;
    for (int64_t quad = begin; quad < end; ++quad) {
      for (int64_t first = 0; first < args.positions; first += kPositions) {
        const int64_t count = std::min(kPositions, args.positions - first);
        draw_normals(key, quad, first, args.group_items[group], first_draw + draw, count, normals);
        write(args, group, draw, quad, first, count, normals, out);
      }
    }
  });
}

template void smoothgrad_noise<float>(const NoisyCopies<float>&, float*, const Run&);
template void smoothgrad_noise<BFloat16>(const NoisyCopies<BFloat16>&, BFloat16*, const Run&);
template void smoothgrad_noise<Float16>(const NoisyCopies<Float16>&, Float16*, const Run&);

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
