// N neighbouring elements as one access of up to 16 bytes, past the first cache, because these elements are not read
// again.
#pragma once

#include <cstdint>
#include <cstring>

#include "cortex_fast/half.h"
#include "launch.cuh"

namespace cortex_fast {
namespace cuda {

template <std::size_t kBytes>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = std::uint16_t;
};
template <>
struct BitsOf<4> {
  using type = unsigned;
};
template <>
struct BitsOf<8> {
  using type = uint2;
};
template <>
struct BitsOf<16> {
  using type = uint4;
};

template <typename T, int N>
__device__ __forceinline__ void read_pack(const T* from, float (&to)[N]) {
  using Bits = typename BitsOf<N * sizeof(T)>::type;
  const Bits bits = __ldcs(reinterpret_cast<const Bits*>(from));
  T elements[N];
  std::memcpy(elements, &bits, sizeof bits);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = load(elements[i]);
}

template <typename T, int N>
__device__ __forceinline__ void write_pack(const float (&from)[N], T* to) {
  using Bits = typename BitsOf<N * sizeof(T)>::type;
  T elements[N];
#pragma unroll
  for (int i = 0; i < N; ++i) store(from[i], elements[i]);
  Bits bits;
  std::memcpy(&bits, elements, sizeof bits);
  __stcs(reinterpret_cast<Bits*>(to), bits);
}

// Whether N elements from this address on can be one access; true for null.
template <int N, typename T>
bool is_packed(const T* address) {
  return reinterpret_cast<std::uintptr_t>(address) % (N * sizeof(T)) == 0;
}

}  // namespace cuda
}  // namespace cortex_fast
