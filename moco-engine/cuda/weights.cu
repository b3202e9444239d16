// Between the flat f32 weights, OIHW, and what convolutions read and give: the storage type, OHWI.
#include "common.cuh"

template <class T>
struct WeightsIn {
  const float* from;  // [c_out, c_in, taps]
  T* to;              // [c_out, taps, padded], 0 behind c_in
  int32_t c_out, c_in, taps, padded;
};

template <class T>
__device__ __forceinline__ void weights_in(const WeightsIn<T>& a) {
  const size_t len = (size_t)a.c_out * a.taps * a.padded, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t row = i / a.padded, o = row / a.taps;
    const int c = (int)(i - row * a.padded), tap = (int)(row - o * a.taps);
    a.to[i] = rounded<T>(c < a.c_in ? a.from[(o * a.c_in + c) * a.taps + tap] : 0.0f);
  }
}
KERNEL(weights_in, WeightsIn)

template <class T>
struct WeightsOut {
  const T* from;  // [splits, c_out, taps, padded]
  float* to;      // [c_out, c_in, taps]
  int32_t c_out, c_in, taps, padded;
  int32_t splits;
};

// The gradient, added up over splits in order.
template <class T>
__device__ __forceinline__ void weights_out(const WeightsOut<T>& a) {
  const size_t len = (size_t)a.c_out * a.c_in * a.taps, stride = (size_t)gridDim.x * THREADS;
  const size_t split = (size_t)a.c_out * a.taps * a.padded;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t row = i / a.taps, o = row / a.c_in;
    const int tap = (int)(i - row * a.taps), c = (int)(row - o * a.c_in);
    const T* from = a.from + (o * a.taps + tap) * a.padded + c;
    float sum = 0.0f;
    for (int s = 0; s < a.splits; ++s) sum += to_float(from[s * split]);
    a.to[i] = sum;
  }
}
KERNEL(weights_out, WeightsOut)
