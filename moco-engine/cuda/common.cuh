// What every kernel shares: storage types, 16-byte accesses, groups of batch statistics, how a kernel is exported.
//
// A kernel is a function template over the storage type of feature maps that takes one struct of arguments; its twin in
// Rust (`src/cuda/arguments.rs`) has the same fields in the same order. `KERNEL` exports it for f32 and for bf16. Every kernel
// runs in blocks of THREADS threads. The same files compile as host C++ against emulation/cuda.h, where a block's threads
// are fibers: that is how they are tested without a GPU.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef MOCO_EMULATION
#include "emulation/cuda.h"
#else
#include <cuda_bf16.h>
typedef __nv_bfloat16 bf16;
#define SHARED(type, name, len) __shared__ type name[len]
#define EXPORTED(symbol, Arguments)
#endif

#define THREADS 256

// One instance: `body` is an expression that names a function of the arguments.
#define KERNEL_INSTANCE(symbol, Arguments, body)                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS) symbol(const Arguments a) { body(a); } \
  EXPORTED(symbol, Arguments)
// A kernel over feature maps: name_f32 and name_bf16.
#define KERNEL(name, Arguments)                                           \
  KERNEL_INSTANCE(name##_f32, Arguments<float>, name<float>)              \
  KERNEL_INSTANCE(name##_bf16, Arguments<bf16>, name<bf16>)
// A kernel that touches no feature map: name_f32 only.
#define KERNEL_F32(name, Arguments) KERNEL_INSTANCE(name##_f32, Arguments, name)

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
template <class T>
__device__ __forceinline__ T rounded(float v);
template <>
__device__ __forceinline__ float rounded<float>(float v) { return v; }
template <>
__device__ __forceinline__ bf16 rounded<bf16>(float v) { return __float2bfloat16_rn(v); }

// W values next to each other, moved in one access.
template <class T, int W>
struct alignas(sizeof(T) * W) Pack {
  T v[W];
};

// Values of a 16-byte access.
template <class T>
struct Wide {
  static constexpr int W = 16 / (int)sizeof(T);
};

template <int W, class T>
__device__ __forceinline__ void read(const T* from, float (&v)[W]) {
  const Pack<T, W> pack = *reinterpret_cast<const Pack<T, W>*>(from);
#pragma unroll
  for (int i = 0; i < W; ++i) v[i] = to_float(pack.v[i]);
}

template <int W, class T>
__device__ __forceinline__ void write(T* to, const float (&v)[W]) {
  Pack<T, W> pack;
#pragma unroll
  for (int i = 0; i < W; ++i) pack.v[i] = rounded<T>(v[i]);
  *reinterpret_cast<Pack<T, W>*>(to) = pack;
}

// W values of a full-precision row that need not be aligned.
template <int W>
__device__ __forceinline__ void read_row(const float* from, float (&v)[W]) {
#pragma unroll
  for (int i = 0; i < W; ++i) v[i] = from[i];
}

template <int W>
struct Width {
  static constexpr int value = W;
};

// Runs f(Width, offset) over `len` values in steps of 16 bytes, the rest one by one.
template <class T, class F>
__device__ __forceinline__ void over_values(size_t len, F f) {
  constexpr int W = Wide<T>::W;
  const size_t wide = len / W, stride = (size_t)gridDim.x * THREADS, thread = (size_t)blockIdx.x * THREADS + threadIdx.x;
  for (size_t i = thread; i < wide; i += stride) f(Width<W>(), i * W);
  for (size_t i = wide * W + thread; i < len; i += stride) f(Width<1>(), i);
}

// max(v, floor) that keeps NaN.
__device__ __forceinline__ float at_least(float v, float floor) { return v < floor ? floor : v; }

// Samples that share batch statistics; `BnGroups` in Rust.
struct Groups {
  int32_t interleaved;
  int32_t count;
  int32_t n;
  int32_t pixels;
};

struct Group {
  int first, samples, step, pixels;

  __device__ __forceinline__ int rows() const { return samples * pixels; }

  // Row of the map that holds the group's row `v`.
  __device__ __forceinline__ size_t row(int v) const {
    if (step == 1) return (size_t)first * pixels + v;
    const int sample = v / pixels;
    return (size_t)(first + sample * step) * pixels + (v - sample * pixels);
  }
};

__device__ __forceinline__ Group group_at(const Groups& groups, int i) {
  const int each = groups.n / groups.count, more = groups.n % groups.count;
  const int samples = each + (i < more ? 1 : 0);
  if (groups.interleaved) return {i, samples, groups.count, groups.pixels};
  return {i * each + (i < more ? i : more), samples, 1, groups.pixels};
}

// How a block walks over rows of `channels` values: each thread keeps W channels and goes down the rows, so that what
// belongs to a channel stays in its registers. Grid: chunks of rows, blocks of channels, groups.
template <int W>
struct Walk {
  int lanes, lane, first_row, step, channel;
  bool active;

  __device__ __forceinline__ Walk(int channels) {
    const int vectors = channels / W;
    lanes = vectors < THREADS ? vectors : THREADS;
    step = THREADS / lanes;
    lane = (int)threadIdx.x % lanes;
    first_row = (int)threadIdx.x / lanes;
    const int vector = (int)blockIdx.y * lanes + lane;
    channel = vector * W;
    active = first_row < step && vector < vectors;
  }
};
