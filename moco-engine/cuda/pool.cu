// Max and mean pooling, a thread per 16 bytes of channels.
#include "common.cuh"

struct PoolSizes {
  int32_t n;
  int32_t height, width;
  int32_t out_height, out_width;
  int32_t channels;
  int32_t kernel, stride, padding;
};

template <class T>
struct MaxPool {
  const T* x;
  T* y;
  uint8_t* index;  // or null
  PoolSizes s;
};

// The first of equal values wins, and NaN wins over all, as in PyTorch; padding is −∞.
template <class T, int W>
__device__ __forceinline__ void max_pool_of(const MaxPool<T>& a) {
  const PoolSizes& s = a.s;
  const int vectors = s.channels / W;
  const size_t len = (size_t)s.n * s.out_height * s.out_width * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t pixel = i / vectors, row = pixel / s.out_width;
    const int channel = (int)(i - pixel * vectors) * W, ox = (int)(pixel - row * s.out_width);
    const int image = (int)(row / s.out_height), oy = (int)(row - (size_t)image * s.out_height);
    float best[W] = {};
    uint8_t at[W] = {};
    bool first = true;
    for (int ky = 0; ky < s.kernel; ++ky) {
      const int iy = oy * s.stride + ky - s.padding;
      if (iy < 0 || iy >= s.height) continue;
      for (int kx = 0; kx < s.kernel; ++kx) {
        const int ix = ox * s.stride + kx - s.padding;
        if (ix < 0 || ix >= s.width) continue;
        float x[W];
        read<W>(a.x + (((size_t)image * s.height + iy) * s.width + ix) * s.channels + channel, x);
#pragma unroll
        for (int k = 0; k < W; ++k)
          if (first || x[k] > best[k] || x[k] != x[k]) {
            best[k] = x[k];
            at[k] = (uint8_t)(ky * s.kernel + kx);
          }
        first = false;
      }
    }
    write<W>(a.y + i * W, best);
    if (a.index) {
      Pack<uint8_t, W> pack;
#pragma unroll
      for (int k = 0; k < W; ++k) pack.v[k] = at[k];
      *reinterpret_cast<Pack<uint8_t, W>*>(a.index + i * W) = pack;
    }
  }
}

template <class T>
__device__ __forceinline__ void max_pool(const MaxPool<T>& a) {
  if (a.s.channels % Wide<T>::W == 0)
    max_pool_of<T, Wide<T>::W>(a);
  else
    max_pool_of<T, 1>(a);
}
KERNEL(max_pool, MaxPool)

template <class T>
struct MaxPoolGradient {
  const T* dy;
  const uint8_t* index;
  T* dx;
  PoolSizes s;
  int32_t accumulate;
};

// Each value collects from the windows in which it was the largest.
template <class T, int W>
__device__ __forceinline__ void max_pool_gradient_of(const MaxPoolGradient<T>& a) {
  const PoolSizes& s = a.s;
  const int vectors = s.channels / W;
  const size_t len = (size_t)s.n * s.height * s.width * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t pixel = i / vectors, row = pixel / s.width;
    const int channel = (int)(i - pixel * vectors) * W, x = (int)(pixel - row * s.width) + s.padding;
    const int image = (int)(row / s.height), y = (int)(row - (size_t)image * s.height) + s.padding;
    float sum[W] = {};
    if (a.accumulate) read<W>(a.dx + i * W, sum);
    // Output o covers input position p (counted with padding) where o·stride ≤ p < o·stride + kernel.
    for (int oy = y < s.kernel ? 0 : (y - s.kernel) / s.stride + 1; oy < s.out_height && oy * s.stride <= y; ++oy)
      for (int ox = x < s.kernel ? 0 : (x - s.kernel) / s.stride + 1; ox < s.out_width && ox * s.stride <= x; ++ox) {
        const uint8_t position = (uint8_t)((y - oy * s.stride) * s.kernel + (x - ox * s.stride));
        const size_t from = (((size_t)image * s.out_height + oy) * s.out_width + ox) * s.channels + channel;
        const Pack<uint8_t, W> at = *reinterpret_cast<const Pack<uint8_t, W>*>(a.index + from);
        float dy[W];
        read<W>(a.dy + from, dy);
#pragma unroll
        for (int k = 0; k < W; ++k) sum[k] += at.v[k] == position ? dy[k] : 0.0f;
      }
    write<W>(a.dx + i * W, sum);
  }
}

template <class T>
__device__ __forceinline__ void max_pool_gradient(const MaxPoolGradient<T>& a) {
  if (a.s.channels % Wide<T>::W == 0)
    max_pool_gradient_of<T, Wide<T>::W>(a);
  else
    max_pool_gradient_of<T, 1>(a);
}
KERNEL(max_pool_gradient, MaxPoolGradient)

template <class T>
struct MeanPool {
  const T* x;
  T* y;
  int32_t n;
  int32_t pixels;
  int32_t channels;
};

template <class T, int W>
__device__ __forceinline__ void mean_pool_of(const MeanPool<T>& a) {
  const int vectors = a.channels / W;
  const size_t len = (size_t)a.n * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t image = i / vectors;
    const T* x = a.x + image * a.pixels * a.channels + (i - image * vectors) * W;
    double sum[W] = {};
    for (int p = 0; p < a.pixels; ++p) {
      float v[W];
      read<W>(x + (size_t)p * a.channels, v);
#pragma unroll
      for (int k = 0; k < W; ++k) sum[k] += v[k];
    }
    float mean[W];
#pragma unroll
    for (int k = 0; k < W; ++k) mean[k] = (float)(sum[k] / a.pixels);
    write<W>(a.y + i * W, mean);
  }
}

template <class T>
__device__ __forceinline__ void mean_pool(const MeanPool<T>& a) {
  if (a.channels % Wide<T>::W == 0)
    mean_pool_of<T, Wide<T>::W>(a);
  else
    mean_pool_of<T, 1>(a);
}
KERNEL(mean_pool, MeanPool)

template <class T>
struct MeanPoolGradient {
  const T* dy;
  T* dx;
  int32_t n;
  int32_t pixels;
  int32_t channels;
  int32_t accumulate;
};

template <class T, int W>
__device__ __forceinline__ void mean_pool_gradient_of(const MeanPoolGradient<T>& a) {
  const int vectors = a.channels / W;
  const float each = 1.0f / a.pixels;
  const size_t len = (size_t)a.n * a.pixels * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t pixel = i / vectors, image = pixel / a.pixels;
    float dy[W], before[W] = {};
    read<W>(a.dy + image * a.channels + (i - pixel * vectors) * W, dy);
    if (a.accumulate) read<W>(a.dx + i * W, before);
#pragma unroll
    for (int k = 0; k < W; ++k) dy[k] = before[k] + dy[k] * each;
    write<W>(a.dx + i * W, dy);
  }
}

template <class T>
__device__ __forceinline__ void mean_pool_gradient(const MeanPoolGradient<T>& a) {
  if (a.channels % Wide<T>::W == 0)
    mean_pool_gradient_of<T, Wide<T>::W>(a);
  else
    mean_pool_gradient_of<T, 1>(a);
}
KERNEL(mean_pool_gradient, MeanPoolGradient)
