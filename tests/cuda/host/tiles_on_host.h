// tiles.cuh on the stand-in for a GPU, from the PTX ISA's descriptions of ldmatrix, mma.m16n8k16 and asynchronous
// copies.
//
// The matrix unit is a rough one: it aligns a sum's 17 terms to the largest, keeps one bit below a float's last and
// drops what is beneath, as has been measured of A100's. A copy's target holds NaN from the time that it is begun, and
// the data from the time that it is waited for: by any thread where copies are bulk ones, else by each thread for what
// it has copied itself (`set_bulk`). So a read that is too early, or a stage that is filled too early, shows.
#pragma once

#include <map>

#include "cuda_on_host.h"

namespace tiles_on_host {

inline std::uint32_t bfloat16_of(float value) {  // to nearest, ties to even
  const auto bits = static_cast<std::uint32_t>(cuda_on_host::bits_of(value));
  if (value != value) return 0x7FFFu;
  return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

inline float float_of_bfloat16(std::uint32_t bits) { return cuda_on_host::value_of<float>(bits << 16); }

// ldmatrix.x2 or .x4: lane 8 j + i gives the address of row i of matrix j.
inline void load_matrices(const unsigned char* first, unsigned apart, bool transposed, unsigned count,
                          std::uint32_t* words) {
  const unsigned lane = cuda_on_host::lane_now(), group = lane / 4, pair = lane % 4 * 2;
  for (unsigned matrix = 0; matrix < count; ++matrix) {
    std::uint32_t word = 0;
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned row = transposed ? pair + half : group, column = transposed ? group : pair + half;
      std::uint16_t bits;
      std::memcpy(&bits, first + matrix * apart + row * 16 + column * 2, 2);
      word |= static_cast<std::uint32_t>(bits) << 16 * half;
    }
    words[matrix] = word;
  }
}

// One warp's operands, and its results.
struct Unit {
  std::uint32_t left[32][3][4], right[32][3][2];
  float sum[32][4];
  unsigned arrived = 0, generation = 0;
};

#if defined(__clang__)
#define TILES_ON_HOST_FAST
#else
#define TILES_ON_HOST_FAST __attribute__((optimize("O3")))
#endif

constexpr int kColumns = 8;

// sums[n] + sum over k of left[k] right[k][n], for the columns of one row.
TILES_ON_HOST_FAST inline void add_products(const float* left, const float (*right)[kColumns], float* sums) {
  constexpr int kTerms = 17;
  alignas(32) float terms[kTerms][kColumns];
  alignas(32) std::uint32_t largest[kColumns] = {};  // as bits, which order the sizes of floats
  for (int k = 0; k < kTerms; ++k) {
    for (int n = 0; n < kColumns; ++n) {
      terms[k][n] = k == 16 ? sums[n] : left[k] * right[k][n];  // exact: 16 bits
      std::uint32_t bits;
      std::memcpy(&bits, &terms[k][n], sizeof bits);
      bits &= 0x7FFFFFFFu;
      largest[n] = bits > largest[n] ? bits : largest[n];
    }
  }
  for (int n = 0; n < kColumns; ++n) {
    if (largest[n] >= 0x7F800000u) {  // infinite, or NaN
      float sum = 0;
      for (int k = 0; k < kTerms; ++k) sum += terms[k][n];
      sums[n] = sum;
      continue;
    }
    // a step is the bit one below the last of the largest; what is below 2^-100 is lost
    const int exponent = std::max(static_cast<int>(largest[n] >> 23) - 127, -100);
    const auto power = [](int of) { return cuda_on_host::value_of<float>(static_cast<std::uint64_t>(127 + of) << 23); };
    const float steps = power(24 - std::max(exponent, -50)) * power(std::max(exponent, -50) - exponent);
    std::int32_t sum = 0;
    for (int k = 0; k < kTerms; ++k) sum += static_cast<std::int32_t>(terms[k][n] * steps);  // less than 17 2^25
    // and the result is cut to 24 bits
    const std::uint32_t size = static_cast<std::uint32_t>(sum < 0 ? -sum : sum);
    const int beyond = size == 0 ? 0 : std::max(0, 8 - __builtin_clz(size));
    const float kept = std::ldexp(static_cast<float>(size >> beyond << beyond), exponent - 24);
    sums[n] = sum < 0 ? -kept : kept;
  }
}

inline void multiply_warp(int products, Unit& unit) {
  float left[3][16][16], right[3][16][kColumns];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned group = lane / 4, pair = lane % 4 * 2;
    for (int plane = 0; plane < 3; ++plane) {
      for (unsigned word = 0; word < 4; ++word) {
        for (unsigned half = 0; half < 2; ++half) {
          left[plane][group + word % 2 * 8][pair + word / 2 * 8 + half] =
              float_of_bfloat16(unit.left[lane][plane][word] >> 16 * half & 0xFFFFu);
          if (word < 2) {
            right[plane][pair + word * 8 + half][group] =
                float_of_bfloat16(unit.right[lane][plane][word] >> 16 * half & 0xFFFFu);
          }
        }
      }
    }
  }
  static const int order[6][2] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
  for (unsigned row = 0; row < 16; ++row) {
    float sums[kColumns] = {};
    for (int i = 6 - products; i < 6; ++i) add_products(left[order[i][0]][row], right[order[i][1]], sums);
    for (unsigned column = 0; column < kColumns; ++column) {
      unit.sum[row % 8 * 4 + column / 2][row / 8 * 2 + column % 2] = sums[column];
    }
  }
}

inline void multiply(int products, const std::uint32_t (&left)[3][4], const std::uint32_t (&right)[3][2],
                     float (&sum)[4]) {
  static std::map<unsigned, Unit> units;  // by warp
  const unsigned lane = cuda_on_host::lane_now();
  Unit& unit = units[cuda_on_host::machine.now->linear / 32];
  const unsigned generation = unit.generation;
  std::memcpy(unit.left[lane], left, sizeof left);
  std::memcpy(unit.right[lane], right, sizeof right);
  if (++unit.arrived == 32) {
    multiply_warp(products, unit);
    unit.arrived = 0;
    ++unit.generation;
  }
  cuda_on_host::wait_until([&unit, generation] { return unit.generation != generation; });
  std::memcpy(sum, unit.sum[lane], sizeof sum);
}

struct Piece {
  unsigned char* to;
  const unsigned char* from;
  std::size_t bytes;
};

struct Round {
  bool begun = false, passed = false;
  std::vector<Piece> pieces[32 * 32 + 1];  // by the thread that copies them; the last: bulk copies
};

struct Ring {
  int stages = 0;
  std::map<int, Round> rounds;
};

inline std::map<const void*, Ring> rings;
inline bool bulk = true;

inline void set_bulk(bool on) { bulk = on; }

inline void begin_ring(const void* memory, int stages) {
  if (cuda_on_host::machine.now->linear == 0) rings[memory] = Ring{stages, {}};
}

inline void begin_round(const void* memory, int round) {
  Ring& ring = rings.at(memory);
  ring.rounds[round].begun = true;
  ring.rounds.erase(round - 2 * ring.stages);
}

// Every thread calls this for every piece; bulk copies are the first thread's.
inline void copy(const void* memory, int round, int piece, unsigned char* to, const unsigned char* from,
                 std::size_t bytes, bool last) {
  const unsigned thread = cuda_on_host::machine.now->linear, threads = blockDim.x;
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    cuda_on_host::fail("an asynchronous copy that is not aligned");
  }
  Round& now = rings.at(memory).rounds[round];
  if (bulk) {
    if (thread != 0) return;
    std::memset(to, 0xFF, bytes);
    now.pieces[1024].push_back({to, from, bytes});
    if (last) begin_round(memory, round);
    return;
  }
  for (std::size_t at = 0; at < bytes; at += 16) {
    if ((static_cast<std::size_t>(piece) * bytes + at) / 16 % threads != thread) continue;
    std::memset(to + at, 0xFF, 16);
    now.pieces[thread].push_back({to + at, from + at, 16});
  }
  if (last) begin_round(memory, round);
}

inline void pass(const void* memory, int round) {
  begin_round(memory, round);
  rings.at(memory).rounds[round].passed = true;
}

inline void wait(const void* memory, int round) {
  Ring& ring = rings.at(memory);
  cuda_on_host::wait_until([&ring, round] { return ring.rounds[round].begun; });
  if (ring.rounds[round].passed) cuda_on_host::fail("a wait for a round without copies");
  auto& pieces = ring.rounds[round].pieces[bulk ? 1024 : cuda_on_host::machine.now->linear];
  for (const Piece& piece : pieces) std::memcpy(piece.to, piece.from, piece.bytes);
  pieces.clear();
}

}  // namespace tiles_on_host
