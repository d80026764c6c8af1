// A stand-in for a GPU, for tests: CUDA kernels run on the CPU, compiled by g++ on x86-64 with CUDA's own headers.
//
// A thread of a block is a fibre with a stack of its own, and all run in turns on one processor. Barriers, shuffles
// and votes wait as they do on a GPU: a thread that goes past a barrier too early, or never comes to it, shows
// as wrong numbers or as "no thread can go on". Dynamic shared memory has just the bytes that were asked for, full of
// NaN, so that AddressSanitizer sees what is read beyond. Only integers have atomics: floats would depend on the order.
//
// What it cannot show:
// - races between threads: a thread runs until it waits. `set_order` runs threads and blocks from the last to the first
//   instead, so that much of what needs a missing barrier comes out differently; but not all of it;
// - asynchronous order beyond what tiles_on_host.h has of it: matrix products are done at once;
// - memory that becomes visible late: fences are nothing here;
// - alignment, bank conflicts, registers, time, and whether a GPU takes the launch (limits are checked roughly);
// - what the compiler for the device makes of it: contraction, its own exp and log.
// Static __shared__ memory is one for all blocks, and keeps what the block before left there.
#pragma once

#if !defined(__x86_64__) || !defined(__GNUC__)
#error "the stand-in for a GPU switches stacks on x86-64, for g++ or clang++"
#endif

#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_host {

constexpr std::size_t kStack = 256 << 10;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_host: %s, in thread (%u, %u, %u) of block (%u, %u, %u)\n", what, threadIdx.x,
               threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

// Threads that meet: all `arrived` go on once they are `expected`.
struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;

  void release_if_full() {
    if (arrived != 0 && arrived >= expected) arrived = 0, ++generation;
  }
};

// The lanes of one mask that exchange values; two rounds of values, since a fast lane may be one round ahead.
struct Exchange {
  unsigned mask, arrived = 0, generation = 0;
  std::uint64_t values[2][32] = {};
};

struct Warp {
  unsigned live = 0;
  std::deque<Exchange> exchanges;

  void release_if_full(Exchange& exchange) const {
    if (exchange.arrived != 0 && (exchange.mask & live & ~exchange.arrived) == 0) {
      exchange.arrived = 0;
      ++exchange.generation;
    }
  }
};

struct Block {
  uint3 index;
  unsigned char* shared;
  Barrier barrier;
  std::vector<Warp> warps;
};

struct Fibre {
  void* stack_pointer;
  unsigned char* stack;
  void* fake_stack;  // AddressSanitizer's
  uint3 index;
  unsigned linear;
  bool (*ready)(const void*);  // null: it can go on
  const void* ready_of;
  bool done;
};

struct Machine {
  std::deque<Fibre> fibres;  // kept from launch to launch, with their stacks
  Block block;               // the one that runs
  const std::function<void()>* body = nullptr;
  Fibre* now = nullptr;
  void* stack_pointer = nullptr;  // the caller's
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  std::size_t stack_size = 0;
  bool backwards = false;
};

inline Machine machine;

// Saves the callee's registers on this stack and goes on with those on the other.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*save*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

__attribute__((no_sanitize("address"))) inline void to_scheduler(Fibre& fibre) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fibre.done ? nullptr : &fibre.fake_stack, machine.stack, machine.stack_size);
#endif
  switch_stacks(&fibre.stack_pointer, machine.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fibre.fake_stack, nullptr, nullptr);
#endif
}

__attribute__((no_sanitize("address"))) inline void fibre_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.stack, &machine.stack_size);
#endif
  (*machine.body)();
  machine.now->done = true;
  to_scheduler(*machine.now);
  fail("a thread that had ended went on");
}

inline void start(Fibre& fibre) {
  if (fibre.stack == nullptr) {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a thread's stack");
    mprotect(memory, 4096, PROT_NONE);
    fibre.stack = static_cast<unsigned char*>(memory);
  }
  auto** top = reinterpret_cast<void**>(fibre.stack + kStack);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fibre_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fibre.stack_pointer = top;
  fibre.fake_stack = nullptr;
  fibre.ready = nullptr;
  fibre.done = false;
}

__attribute__((no_sanitize("address"))) inline void resume(Fibre& fibre) {
  machine.now = &fibre;
  threadIdx = fibre.index;
  blockIdx = machine.block.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.fake_stack, fibre.stack, kStack);
#endif
  switch_stacks(&machine.stack_pointer, fibre.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.fake_stack, nullptr, nullptr);
#endif
}

// The thread goes on when ready() is true; other threads make it so. For tile primitives' own barriers.
template <typename Ready>
void wait_until(const Ready& ready) {
  if (ready()) return;
  Fibre& fibre = *machine.now;
  fibre.ready = [](const void* of) { return (*static_cast<const Ready*>(of))(); };
  fibre.ready_of = &ready;
  to_scheduler(fibre);
}

inline void wait_at(Barrier& barrier) {
  const unsigned generation = barrier.generation;
  ++barrier.arrived;
  barrier.release_if_full();
  wait_until([&barrier, generation] { return barrier.generation != generation; });
}

inline void end(Fibre& fibre) {  // a thread that has ended is waited for no longer
  Warp& warp = machine.block.warps[fibre.linear / 32];
  warp.live &= ~(1u << fibre.linear % 32);
  for (Exchange& exchange : warp.exchanges) warp.release_if_full(exchange);
  --machine.block.barrier.expected;
  machine.block.barrier.release_if_full();
}

// All threads of machine.block, from their start to their end.
inline void run_block(std::size_t threads) {
  std::size_t live = threads;
  while (live != 0) {
    bool progress = false;
    for (std::size_t i = 0; i < threads; ++i) {
      Fibre& fibre = machine.fibres[machine.backwards ? threads - 1 - i : i];
      if (fibre.done || (fibre.ready != nullptr && !fibre.ready(fibre.ready_of))) continue;
      fibre.ready = nullptr;
      progress = true;
      resume(fibre);
      if (fibre.done) {
        end(fibre);
        --live;
      }
    }
    if (!progress) fail("no thread can go on; the last to run stands");
  }
}

// Every block of the grid, one after the other. A cudaError_t.
inline int run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  const bool fits = threads >= 1 && threads <= 1024 && blocks >= 1 && grid.x <= 2147483647u && grid.y <= 65535 &&
                    grid.z <= 65535 && shared_bytes <= 227 * 1024;
  if (!fits) return cudaErrorInvalidConfiguration;
  if (machine.now != nullptr) fail("a kernel that launches kernels");
  gridDim = grid;
  blockDim = block;
  machine.body = &body;
  machine.fibres.resize(std::max(machine.fibres.size(), threads));
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t number = machine.backwards ? blocks - 1 - i : i;
    Block& one = machine.block = Block{};
    one.index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                 static_cast<unsigned>(number / grid.x / grid.y)};
    void* shared = nullptr;
    if (posix_memalign(&shared, 1024, std::max<std::size_t>(shared_bytes, 1)) != 0) fail("no shared memory");
    std::memset(shared, 0xFF, shared_bytes);
    one.shared = static_cast<unsigned char*>(shared);
    one.barrier.expected = static_cast<unsigned>(threads);
    one.warps.resize((threads + 31) / 32);
    for (unsigned linear = 0; linear < threads; ++linear) {
      Fibre& fibre = machine.fibres[linear];
      fibre.index = {linear % block.x, linear / block.x % block.y, linear / block.x / block.y};
      fibre.linear = linear;
      one.warps[linear / 32].live |= 1u << linear % 32;
      start(fibre);
    }
    run_block(threads);
    std::free(shared);
  }
  machine.now = nullptr;
  return cudaSuccess;
}

// Blocks and threads from the last to the first.
inline void set_order(bool backwards) { machine.backwards = backwards; }

inline unsigned lane_now() { return machine.now->linear % 32; }
inline unsigned char* dynamic_shared() { return machine.block.shared; }

// Each lane of the mask gives a value; get(values) is called with all of them, by lane, when they are there.
template <typename Get>
auto exchange(unsigned mask, std::uint64_t value, const Get& get) {
  Warp& warp = machine.block.warps[machine.now->linear / 32];
  const unsigned lane = lane_now();
  if ((mask >> lane & 1) == 0) fail("a lane that its own mask leaves out");
  auto found = std::find_if(warp.exchanges.begin(), warp.exchanges.end(), [mask](auto& e) { return e.mask == mask; });
  if (found == warp.exchanges.end()) {
    warp.exchanges.push_back({mask});
    found = warp.exchanges.end() - 1;
  }
  Exchange& all = *found;
  const unsigned generation = all.generation;
  all.values[generation % 2][lane] = value;
  all.arrived |= 1u << lane;
  warp.release_if_full(all);
  wait_until([&all, generation] { return all.generation != generation; });
  return get(all.values[generation % 2]);
}

template <typename T>
std::uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <typename T>
T value_of(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A lane whose source lies outside its segment keeps its own value.
template <typename T>
T shuffle(unsigned mask, T value, unsigned source, bool inside) {
  return exchange(mask, bits_of(value), [&](const std::uint64_t* values) {
    if (!inside) return value;
    if ((mask >> source & 1) == 0) fail("a shuffle from a lane that its mask leaves out");
    return value_of<T>(values[source]);
  });
}

template <typename T, typename Combine>
T reduce(unsigned mask, T value, const Combine& combine) {
  return exchange(mask, bits_of(value), [&](const std::uint64_t* values) {
    bool first = true;
    T all{};
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      all = first ? value_of<T>(values[lane]) : combine(all, value_of<T>(values[lane]));
      first = false;
    }
    return all;
  });
}

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::wait_at(cuda_on_host::machine.block.barrier); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  cuda_on_host::exchange(mask, 0, [](const std::uint64_t*) { return 0; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = cuda_on_host::lane_now(), base = lane & ~static_cast<unsigned>(width - 1);
  return cuda_on_host::shuffle(mask, value, base + static_cast<unsigned>(source & (width - 1)), true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const unsigned lane = cuda_on_host::lane_now(), source = lane ^ static_cast<unsigned>(lanes);
  return cuda_on_host::shuffle(mask, value, source, source < (lane & ~static_cast<unsigned>(width - 1)) + width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_on_host::lane_now();
  return cuda_on_host::shuffle(mask, value, lane - delta, (lane & (width - 1)) >= delta);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_on_host::lane_now();
  return cuda_on_host::shuffle(mask, value, lane + delta, (lane & (width - 1)) + delta < static_cast<unsigned>(width));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return cuda_on_host::exchange(mask, predicate != 0, [mask](const std::uint64_t* values) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
      ballot |= (mask >> lane & 1 & static_cast<unsigned>(values[lane])) << lane;
    return ballot;
  });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return cuda_on_host::reduce(mask, value, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return cuda_on_host::reduce(mask, value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return cuda_on_host::reduce(mask, value, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
inline int __syncthreads_or(int predicate) {
  __shared__ int any;  // of the one block that runs
  __syncthreads();
  any = 0;
  __syncthreads();
  any |= predicate != 0;
  __syncthreads();
  return any;
}

#define CUDA_ON_HOST_ATOMICS(T)                                                                  \
  inline T atomicAdd(T* at, T value) { return std::exchange(*at, static_cast<T>(*at + value)); } \
  inline T atomicMax(T* at, T value) { return std::exchange(*at, std::max(*at, value)); }        \
  inline T atomicMin(T* at, T value) { return std::exchange(*at, std::min(*at, value)); }        \
  inline T atomicOr(T* at, T value) { return std::exchange(*at, static_cast<T>(*at | value)); }  \
  inline T atomicExch(T* at, T value) { return std::exchange(*at, value); }                      \
  inline T atomicCAS(T* at, T expected, T value) { return std::exchange(*at, *at == expected ? value : *at); }
CUDA_ON_HOST_ATOMICS(int)
CUDA_ON_HOST_ATOMICS(unsigned)
CUDA_ON_HOST_ATOMICS(unsigned long long)
#undef CUDA_ON_HOST_ATOMICS

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
void __stcs(T* at, T value) {
  *at = value;
}
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline unsigned __float_as_uint(float value) { return cuda_on_host::value_of<unsigned>(cuda_on_host::bits_of(value)); }
inline float __uint_as_float(unsigned bits) { return cuda_on_host::value_of<float>(bits); }
inline int __float_as_int(float value) { return cuda_on_host::value_of<int>(cuda_on_host::bits_of(value)); }
inline float __int_as_float(int bits) { return cuda_on_host::value_of<float>(cuda_on_host::bits_of(bits)); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float value) { return std::sqrt(value); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
[[noreturn]] inline void __trap() { cuda_on_host::fail("__trap"); }
