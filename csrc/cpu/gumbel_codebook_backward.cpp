// Bound: one matrix product, D = dE C^T, 2 R K d operations; then the optimiser's traffic, 28 bytes an element of Adam
// (P, m and v read and written, P read once more). Published, the same takes two products and some fifteen passes over
// [R, K].
//
// For a block of kRowBlock rows, D and the softmax's weights stay in cache (256 bytes a code). First pass, over chunks
// of codes: D by panel products, the noise drawn again, the weights, and their sums with and without D. Those give y
// and <y, D>; the second pass writes dP, or takes the optimiser's step in place, and reads P from cache. Nothing of [R,
// K] is allocated.
//
// Chunks are cut by sizes alone and their sums are combined in order: any number of threads gives the same bits.
#include <algorithm>
#include <memory>

#include "cortex_fast/gumbel_codebook.h"
#include "cortex_fast/parallel.h"
#include "product.h"
#include "soften.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

constexpr int64_t kTile = 96;        // codes of one product
constexpr int64_t kMaxDepth = 1024;  // of a panel: 64 KB
static_assert(kChunk % kTile == 0 && kTile % kFloats == 0 && kRowBlock % kPanel == 0 && kPanel % kFloats == 0);

// What the two passes share about a block of rows; D and weights are [chunk][kRowBlock][kChunk].
struct Block {
  int64_t start, rows;
  std::unique_ptr<float[]> upstream;  // panels of dE^T: [kRowBlock / kPanel][channels][kPanel]
  std::unique_ptr<float[]> d, weights;
  std::unique_ptr<Share[]> shares;  // [chunk][kRowBlock]
  double dots[kRowBlock];           // <y, D>
  const int64_t* anchor = nullptr;  // of all rows: the code whose D is less by `stay_penalty`
  float stay_penalty = 0;

  Block(const GumbelCodebook& args, int64_t most_rows) {
    const int64_t cells = ceil_div(args.codes, kChunk) * kRowBlock;
    upstream.reset(new float[static_cast<std::size_t>(ceil_div(most_rows, kPanel) * kPanel * args.channels)]);
    d.reset(new float[static_cast<std::size_t>(cells * kChunk)]);
    weights.reset(new float[static_cast<std::size_t>(cells * kChunk)]);
    shares.reset(new Share[static_cast<std::size_t>(cells)]);
    // past the last code D is multiplied with weights of 0, so it must be finite
    std::fill(d.get() + (cells - kRowBlock) * kChunk, d.get() + cells * kChunk, 0.0f);
  }
};

void pack(const GumbelCodebook& args, const float* upstream, Block& block) {
  for (int64_t panel = 0; panel < ceil_div(block.rows, kPanel); ++panel) {
    float* to = block.upstream.get() + panel * args.channels * kPanel;
    for (int64_t j = 0; j < kPanel; ++j) {
      const int64_t row = panel * kPanel + j;
      const float* from = upstream + (block.start + row) * args.channels;
      for (int64_t k = 0; k < args.channels; ++k) to[k * kPanel + j] = row < block.rows ? from[k] : 0.0f;
    }
  }
}

// to[j * kChunk + i] = from[i * kPanel + j], in squares of vectors; past the last code it copies whatever follows.
void write_transposed(const float* from, int64_t codes, float* to) {
  for (int64_t i = 0; i < codes; i += kFloats) {
    for (int64_t j = 0; j < kPanel; j += kFloats) {
      FloatVector square[kFloats];
      for (int64_t k = 0; k < kFloats; ++k) {
        square[k] = *reinterpret_cast<const FloatMemory*>(from + (i + k) * kPanel + j);
      }
      transpose(square);
      for (int64_t k = 0; k < kFloats; ++k) *reinterpret_cast<FloatMemory*>(to + (j + k) * kChunk + i) = square[k];
    }
  }
}

// D of one chunk for all rows of the block.
void multiply(const GumbelCodebook& args, const Block& block, int64_t chunk) {
  alignas(64) float out[kTile * kPanel] = {};
  const int64_t stop = std::min(args.codes, (chunk + 1) * kChunk);
  for (int64_t code = chunk * kChunk; code < stop; code += kTile) {
    const int64_t codes = std::min(kTile, stop - code);
    for (int64_t panel = 0; panel < ceil_div(block.rows, kPanel); ++panel) {
      const float* right = block.upstream.get() + panel * args.channels * kPanel;
      for (int64_t k = 0; k < std::max<int64_t>(1, args.channels); k += kMaxDepth) {
        const int64_t depth = std::min(kMaxDepth, args.channels - k);
        panel_product({args.codebook + code * args.channels + k, args.channels, 1}, codes, depth, right + k * kPanel,
                      k > 0, out);
      }
      // what the last square of vectors takes beyond the codes must be finite, whatever other rows left there
      std::fill(out + codes * kPanel, out + ceil_div(codes, kFloats) * kFloats * kPanel, 0.0f);
      write_transposed(out, codes, block.d.get() + (chunk * kRowBlock + panel * kPanel) * kChunk + code % kChunk);
    }
  }
}

void first_pass(const GumbelCodebook& args, Block& block, Key key, const Run& run) {
  const int64_t chunks = ceil_div(args.codes, kChunk);
  parallel_tasks(chunks, run.threads, [&](int64_t chunk) {
    multiply(args, block, chunk);
    const int64_t first = chunk * kChunk;
    const int64_t count = std::min(kChunk, args.codes - first);
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t cell = chunk * kRowBlock + r;
      float* weights = block.weights.get() + cell * kChunk;
      float* d = block.d.get() + cell * kChunk;
      if (block.anchor != nullptr) {
        const int64_t code = block.anchor[block.start + r] - first;
        if (code >= 0 && code < count) d[code] -= block.stay_penalty;
      }
      const float reference = soften_chunk(args, row_of(args, block.start + r), first, count, key, weights);
      Floats sum(0.0f), dot(0.0f);
      for (int64_t i = 0; i < count; i += kPack) {  // past `count` weights are 0, and D is finite
        const Floats weight = load_floats(weights + i);
        sum = sum + weight;
        dot = multiply_add(weight, load_floats(d + i), dot);
      }
      block.shares[static_cast<std::size_t>(cell)] = {reference, sum_of_lanes(sum), sum_of_lanes(dot), 0};
    }
  });
  for (int64_t r = 0; r < block.rows; ++r) {
    block.dots[r] = normalise(block.shares.get() + r, chunks, kRowBlock, args.tau);
  }
}

// body(position of the first code in [problems rows, codes], dP of the chunk, count) for each chunk of each row.
template <typename Body>
void second_pass(const GumbelCodebook& args, const Block& block, const Run& run, const Body& body) {
  const int64_t chunks = ceil_div(args.codes, kChunk);
  parallel_tasks(chunks * block.rows, run.threads, [&](int64_t task) {
    const int64_t chunk = task % chunks, r = task / chunks, cell = chunk * kRowBlock + r;
    const int64_t first = chunk * kChunk;
    const int64_t count = std::min(kChunk, args.codes - first);
    const float* weights = block.weights.get() + cell * kChunk;
    const float* d = block.d.get() + cell * kChunk;
    const double share = block.shares[static_cast<std::size_t>(cell)].factor;
    // tiny tau: D - <y, D> may be 0, and times infinity would be NaN
    constexpr double kMost = std::numeric_limits<float>::max();
    const auto factor = static_cast<float>(std::min(share / static_cast<double>(args.tau), kMost));
    const auto dot = static_cast<float>(block.dots[r]);
    float gradient[kChunk];
    for (int64_t i = 0; i < count; ++i) gradient[i] = factor * weights[i] * (d[i] - dot);
    body((block.start + r) * args.codes + first, gradient, count);
  });
}

// body(block) for each block of rows, its first pass done.
template <typename Body>
void for_blocks(const GumbelCodebook& args, const float* upstream, const int64_t* anchor, float stay_penalty,
                const Run& run, const Body& body) {
  const Key key = stream_key(args.seed, Stream::kGumbel);
  const int64_t rows = args.problems * args.rows;
  Block block(args, std::min(rows, kRowBlock));
  block.anchor = anchor;
  block.stay_penalty = stay_penalty;
  for (block.start = 0; block.start < rows; block.start += kRowBlock) {
    block.rows = std::min(kRowBlock, rows - block.start);
    pack(args, upstream, block);
    first_pass(args, block, key, run);
    body(block);
  }
}

void descend(float lr, const float* gradient, int64_t count, float* __restrict p) {
  for (int64_t i = 0; i < count; ++i) p[i] -= lr * gradient[i];
}

// torch.optim.Adam's arithmetic, its factors rounded to float once.
struct Adam {
  float size, scale, keep, beta2, fresh, eps;

  explicit Adam(const Update& update) {
    const double correction1 = 1 - std::pow(update.beta1, static_cast<double>(update.step_count));
    const double correction2 = 1 - std::pow(update.beta2, static_cast<double>(update.step_count));
    size = static_cast<float>(update.lr / correction1);
    scale = static_cast<float>(1 / std::sqrt(correction2));
    keep = static_cast<float>(1 - update.beta1);
    beta2 = static_cast<float>(update.beta2);
    fresh = static_cast<float>(1 - update.beta2);
    eps = static_cast<float>(update.eps);
  }

  void step(const float* gradient, int64_t count, float* __restrict p, float* __restrict m, float* __restrict v) const {
    for (int64_t i = 0; i < count; ++i) {
      m[i] = multiply_add(keep, gradient[i] - m[i], m[i]);
      v[i] = multiply_add(beta2, v[i], fresh * gradient[i] * gradient[i]);
      p[i] -= size * m[i] / multiply_add(root(v[i]), scale, eps);
    }
  }
};

// dC of a hard selection: each row's dE is added to the code it selected, rows in order.
void scatter(const GumbelCodebook& args, const float* upstream, const int64_t* index, float* grad_codebook,
             const Run& run) {
  std::fill_n(grad_codebook, args.codes * args.channels, 0.0f);
  parallel_ranges(args.channels, run.threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = 0; row < args.problems * args.rows; ++row) {
      for (int64_t k = begin; k < end; ++k) {
        grad_codebook[index[row] * args.channels + k] += upstream[row * args.channels + k];
      }
    }
  });
}

// dC += y^T dE of one block of rows of a soft selection.
void add_outer(const GumbelCodebook& args, const float* upstream, const Block& block, float* grad_codebook,
               const Run& run) {
  const int64_t panels = ceil_div(args.channels, kPanel);
  parallel_tasks(ceil_div(args.codes, kChunk), run.threads, [&](int64_t chunk) {
    alignas(64) float right[kRowBlock * kPanel], out[kTile * kPanel];
    const int64_t stop = std::min(args.codes, (chunk + 1) * kChunk);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t column = panel * kPanel;
      const int64_t width = std::min(kPanel, args.channels - column);
      for (int64_t r = 0; r < block.rows; ++r) {  // the weights' factors are the rows', so that dE can carry them
        const float* from = upstream + (block.start + r) * args.channels + column;
        const double factor = block.shares[static_cast<std::size_t>(chunk * kRowBlock + r)].factor;
        for (int64_t j = 0; j < kPanel; ++j) {
          right[r * kPanel + j] = j < width ? static_cast<float>(factor) * from[j] : 0.0f;
        }
      }
      for (int64_t code = chunk * kChunk; code < stop; code += kTile) {
        const int64_t codes = std::min(kTile, stop - code);
        const float* left = block.weights.get() + chunk * kRowBlock * kChunk + code % kChunk;
        panel_product({left, 1, kChunk}, codes, block.rows, right, false, out);
        for (int64_t i = 0; i < codes; ++i) {
          float* to = grad_codebook + (code + i) * args.channels + column;
          for (int64_t j = 0; j < width; ++j) to[j] += out[i * kPanel + j];
        }
      }
    }
  });
}

}  // namespace

void gumbel_codebook_backward(const float* upstream, const GumbelCodebook& args, const int64_t* index,
                              float* grad_logits, float* grad_codebook, const Run& run) {
  const bool outer = grad_codebook != nullptr && !args.hard;
  if (outer) std::fill_n(grad_codebook, args.codes * args.channels, 0.0f);
  for_blocks(args, upstream, nullptr, 0, run, [&](const Block& block) {
    second_pass(args, block, run, [&](int64_t at, const float* gradient, int64_t count) {
      std::copy_n(gradient, count, grad_logits + at);
    });
    if (outer) add_outer(args, upstream, block, grad_codebook, run);
  });
  if (grad_codebook != nullptr && args.hard) scatter(args, upstream, index, grad_codebook, run);
}

void gumbel_codebook_step(const GumbelCodebook& args, const float* upstream, const Update& update, float* logits,
                          const Run& run) {
  const Adam adam(update);
  for_blocks(args, upstream, update.anchor, update.stay_penalty, run, [&](const Block& block) {
    second_pass(args, block, run, [&](int64_t at, const float* gradient, int64_t count) {
      if (update.first_moment == nullptr) {
        descend(static_cast<float>(update.lr), gradient, count, logits + at);
      } else {
        adam.step(gradient, count, logits + at, update.first_moment + at, update.second_moment + at);
      }
    });
  });
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
