// The part of CUDA's dialect that the kernels use, for a host compiler.
//
// A launch runs block after block; the threads of a block are fibers of one OS thread that give way at barriers and
// shuffles. What a GPU leaves to luck is made visible: shared memory starts as NaN in each block, threads and blocks can
// run in either order, and a barrier that not every thread reaches ends the launch with an error.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads)

struct uint3 {
  unsigned x, y, z;
};
extern thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();

namespace emulation {
// Fills shared memory with NaN when the first thread of a block comes by.
void poison(void* shared, size_t bytes);
// The value that `lane` of the calling thread's warp brings to the same shuffle.
uint64_t exchange(uint64_t value, unsigned lane);
unsigned own_lane();

struct Registered {
  Registered(const char* symbol, void (*run)(const void*), size_t arguments);
};
}  // namespace emulation

template <class V>
V emulated_shuffle(V value, unsigned lane) {
  static_assert(sizeof(V) <= 8, "shuffles move at most eight bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(V));
  bits = emulation::exchange(bits, lane);
  memcpy(&value, &bits, sizeof(V));
  return value;
}
template <class V>
V __shfl_xor_sync(unsigned, V value, int mask) {
  return emulated_shuffle(value, emulation::own_lane() ^ (unsigned)mask);
}
template <class V>
V __shfl_sync(unsigned, V value, int lane) {
  return emulated_shuffle(value, (unsigned)lane);
}

#define SHARED(type, name, len)         \
  static thread_local type name[len];   \
  emulation::poison(name, sizeof(name))

#define EXPORTED(symbol, Arguments)                                                                      \
  static const emulation::Registered registered_##symbol(                                                \
      #symbol, [](const void* a) { symbol(*static_cast<const Arguments*>(a)); }, sizeof(Arguments));

struct bf16 {
  uint16_t bits;
};
inline float __bfloat162float(bf16 v) {
  const uint32_t wide = (uint32_t)v.bits << 16;
  float f;
  memcpy(&f, &wide, 4);
  return f;
}
inline bf16 __float2bfloat16_rn(float f) {
  uint32_t wide;
  memcpy(&wide, &f, 4);
  if (f != f) return {0x7fff};
  return {(uint16_t)((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
}

// The host's compiler fuses nothing.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int min(int a, int b) { return a < b ? a : b; }
