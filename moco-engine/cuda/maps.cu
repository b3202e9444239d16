// Elementwise steps on feature maps, and the way into and out of them.
#include "common.cuh"

template <class T>
struct Load {
  const float* from;
  T* to;
  uint64_t len;
  int32_t accumulate;
};

template <class T>
__device__ __forceinline__ void load(const Load<T>& a) {
  over_values<T>(a.len, [&](auto width, size_t i) {
    constexpr int W = decltype(width)::value;
    float v[W], before[W];
    read_row<W>(a.from + i, v);
    if (a.accumulate) {
      read<W>(a.to + i, before);
#pragma unroll
      for (int k = 0; k < W; ++k) v[k] += before[k];
    }
    write<W>(a.to + i, v);
  });
}
KERNEL(load, Load)

template <class T>
struct Store {
  const T* from;
  float* to;
  uint64_t len;
};

template <class T>
__device__ __forceinline__ void store(const Store<T>& a) {
  over_values<T>(a.len, [&](auto width, size_t i) {
    constexpr int W = decltype(width)::value;
    float v[W];
    read<W>(a.from + i, v);
#pragma unroll
    for (int k = 0; k < W; ++k) a.to[i + k] = v[k];
  });
}
KERNEL(store, Store)

template <class T>
struct Add {
  const T* a;  // may be y; null: y = act(b)
  const T* b;
  T* y;
  uint64_t len;
  int32_t relu;
};

template <class T>
__device__ __forceinline__ void add(const Add<T>& a) {
  const float floor = a.relu ? 0.0f : -INFINITY;
  over_values<T>(a.len, [&](auto width, size_t i) {
    constexpr int W = decltype(width)::value;
    float v[W] = {}, b[W];
    if (a.a) read<W>(a.a + i, v);
    read<W>(a.b + i, b);
#pragma unroll
    for (int k = 0; k < W; ++k) v[k] = at_least(a.a ? v[k] + b[k] : b[k], floor);
    write<W>(a.y + i, v);
  });
}
KERNEL(add, Add)

template <class T>
struct ReluMask {
  const T* y;
  T* dy;
  uint64_t len;
};

template <class T>
__device__ __forceinline__ void relu_mask(const ReluMask<T>& a) {
  over_values<T>(a.len, [&](auto width, size_t i) {
    constexpr int W = decltype(width)::value;
    float y[W], dy[W];
    read<W>(a.y + i, y);
    read<W>(a.dy + i, dy);
#pragma unroll
    for (int k = 0; k < W; ++k) dy[k] = y[k] > 0.0f ? dy[k] : 0.0f;
    write<W>(a.dy + i, dy);
  });
}
KERNEL(relu_mask, ReluMask)

template <class T>
struct PadChannels {
  const T* from;
  T* to;
  uint64_t rows;
  int32_t channels;
  int32_t padded;
};

// Rows of `channels` values into rows of `padded` values, the rest 0: tensor cores want channels in eights.
template <class T>
__device__ __forceinline__ void pad_channels(const PadChannels<T>& a) {
  const size_t stride = (size_t)gridDim.x * THREADS, vectors = a.rows * a.padded / Wide<T>::W;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < vectors; i += stride) {
    float v[Wide<T>::W];
    const size_t first = i * Wide<T>::W, row = first / a.padded;
    const int channel = (int)(first - row * a.padded);
#pragma unroll
    for (int k = 0; k < Wide<T>::W; ++k)
      v[k] = channel + k < a.channels ? to_float(a.from[row * a.channels + channel + k]) : 0.0f;
    write<Wide<T>::W>(a.to + first, v);
  }
}
KERNEL(pad_channels, PadChannels)

template <class T>
struct AddBias {
  T* y;
  const float* bias;
  uint64_t rows;
  int32_t channels;
  int32_t relu;
};

template <class T, int W>
__device__ __forceinline__ void add_bias_of(const AddBias<T>& a) {
  const float floor = a.relu ? 0.0f : -INFINITY;
  const size_t vectors = a.channels / W, len = a.rows * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    float y[W], bias[W];
    read<W>(a.y + i * W, y);
    read_row<W>(a.bias + i % vectors * W, bias);
#pragma unroll
    for (int k = 0; k < W; ++k) y[k] = at_least(y[k] + bias[k], floor);
    write<W>(a.y + i * W, y);
  }
}

template <class T>
__device__ __forceinline__ void add_bias(const AddBias<T>& a) {
  if (a.channels % Wide<T>::W == 0)
    add_bias_of<T, Wide<T>::W>(a);
  else
    add_bias_of<T, 1>(a);
}
KERNEL(add_bias, AddBias)
