// Flat buffers in full precision: SGD with momentum, the momentum encoder's moving average, rows moved about.
#include "common.cuh"

// Numbers that change from step to step lie in device memory where a captured graph runs the step; null: by value.
struct Sgd {
  float* params;
  const float* gradients;
  float* velocity;
  const float* rates;  // [lr, momentum, weight decay] or null
  uint64_t len;
  float lr, momentum, weight_decay;
};

__device__ __forceinline__ void sgd(const Sgd& a) {
  const float lr = a.rates ? a.rates[0] : a.lr, momentum = a.rates ? a.rates[1] : a.momentum;
  const float decay = a.rates ? a.rates[2] : a.weight_decay;
  over_values<float>(a.len, [&](auto width, size_t i) {
    constexpr int W = decltype(width)::value;
    float p[W], g[W], v[W];
    read<W>(a.params + i, p);
    read<W>(a.gradients + i, g);
    read<W>(a.velocity + i, v);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      v[k] = momentum * v[k] + (g[k] + decay * p[k]);
      p[k] -= lr * v[k];
    }
    write<W>(a.params + i, p);
    write<W>(a.velocity + i, v);
  });
}
KERNEL_F32(sgd, Sgd)

struct Ema {
  float* target;
  const float* source;
  const float* rates;  // [m, 1 − m] or null
  uint64_t len;
  float m, rest;
};

__device__ __forceinline__ void ema(const Ema& a) {
  const float m = a.rates ? a.rates[0] : a.m, rest = a.rates ? a.rates[1] : a.rest;
  over_values<float>(a.len, [&](auto width, size_t i) {
    constexpr int W = decltype(width)::value;
    float t[W], s[W];
    read<W>(a.target + i, t);
    read<W>(a.source + i, s);
#pragma unroll
    for (int k = 0; k < W; ++k) t[k] = t[k] * m + s[k] * rest;
    write<W>(a.target + i, t);
  });
}
KERNEL_F32(ema, Ema)

struct MoveRows {
  const float* from;
  float* to;
  const uint32_t* order;
  int32_t rows, width;
  int32_t scatter;
};

// to[i] = from[order[i]], or to[order[i]] = from[i]; whole rows.
__device__ __forceinline__ void move_rows(const MoveRows& a) {
  const size_t len = (size_t)a.rows * a.width, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t row = i / a.width, column = i - row * a.width, other = (size_t)a.order[row] * a.width + column;
    if (a.scatter)
      a.to[other] = a.from[i];
    else
      a.to[i] = a.from[other];
  }
}
KERNEL_F32(move_rows, MoveRows)

struct Enqueue {
  const float* keys;
  float* queue;
  const uint64_t* place;  // row of the first key, or null
  uint64_t pointer;
  uint64_t slots;
  int32_t rows, width;
};

// Row i goes to (pointer + i) mod slots; `rows` is at most `slots`.
__device__ __forceinline__ void enqueue(const Enqueue& a) {
  const uint64_t pointer = a.place ? *a.place : a.pointer;
  const size_t len = (size_t)a.rows * a.width, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t row = i / a.width, column = i - row * a.width;
    a.queue[(pointer + row) % a.slots * a.width + column] = a.keys[i];
  }
}
KERNEL_F32(enqueue, Enqueue)
