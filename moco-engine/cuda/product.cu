// Matrix products with f32 accumulation: the linear layers, and convolutions where cuDNN has no answer.
//
// One tiled product serves all; an operand type says where its values lie (for a convolution it gathers them). The sum
// over k may be cut into splits, each into its own part of `partial`, which `add_splits` adds in order.
#include "common.cuh"

#define TILE 64
#define DEPTH 16

// C[m, n] = Σ over k in [begin, end) of A(m, k) · B(k, n) for the block's tile; put(m, n, value) takes the results.
template <class A, class B, class P>
__device__ __forceinline__ void product(int M, int N, int begin, int end, const A& a, const B& b, P put) {
  SHARED(float, tile_a, DEPTH * (TILE + 4));
  SHARED(float, tile_b, DEPTH * (TILE + 4));
  const int tid = (int)threadIdx.x, m0 = (int)blockIdx.x * TILE, n0 = (int)blockIdx.y * TILE;
  const int tm = tid / 16 * 4, tn = tid % 16 * 4;
  float sum[4][4] = {};
  for (int k0 = begin; k0 < end; k0 += DEPTH) {
#pragma unroll
    for (int i = 0; i < TILE * DEPTH / THREADS; ++i) {
      const int at = tid + i * THREADS;
      // Neighbouring threads read neighbouring values of memory.
      const int am = A::ALONG_K ? at / DEPTH : at % TILE, ak = A::ALONG_K ? at % DEPTH : at / TILE;
      const int bn = B::ALONG_K ? at / DEPTH : at % TILE, bk = B::ALONG_K ? at % DEPTH : at / TILE;
      tile_a[ak * (TILE + 4) + am] = m0 + am < M && k0 + ak < end ? a(m0 + am, k0 + ak) : 0.0f;
      tile_b[bk * (TILE + 4) + bn] = n0 + bn < N && k0 + bk < end ? b(n0 + bn, k0 + bk) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
      const Pack<float, 4> va = *reinterpret_cast<const Pack<float, 4>*>(tile_a + k * (TILE + 4) + tm);
      const Pack<float, 4> vb = *reinterpret_cast<const Pack<float, 4>*>(tile_b + k * (TILE + 4) + tn);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += va.v[i] * vb.v[j];
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j)
      if (m0 + tm + i < M && n0 + tn + j < N) put(m0 + tm + i, n0 + tn + j, sum[i][j]);
}

// A matrix with rows of `stride` values, element (row, k).
template <class T>
struct Rows {
  static constexpr bool ALONG_K = true;
  const T* values;
  int stride;
  __device__ __forceinline__ float operator()(int row, int k) const { return to_float(values[(size_t)row * stride + k]); }
};

// Its transpose: element (column, k) with k going down the rows.
template <class T>
struct Columns {
  static constexpr bool ALONG_K = false;
  const T* values;
  int stride;
  __device__ __forceinline__ float operator()(int column, int k) const {
    return to_float(values[(size_t)k * stride + column]);
  }
};

template <class T>
struct Linear {
  const T* x;
  const float* weight;
  const float* bias;  // or null
  T* y;
  int32_t n, inputs, outputs;
  int32_t relu;
};

template <class T>
__device__ __forceinline__ void linear(const Linear<T>& a) {
  const float floor = a.relu ? 0.0f : -INFINITY;
  product(a.n, a.outputs, 0, a.inputs, Rows<T>{a.x, a.inputs}, Rows<float>{a.weight, a.inputs}, [&](int m, int n, float v) {
    if (a.bias) v += a.bias[n];
    a.y[(size_t)m * a.outputs + n] = rounded<T>(at_least(v, floor));
  });
}
KERNEL(linear, Linear)

template <class T>
struct LinearData {
  const T* dy;
  const float* weight;
  T* dx;
  int32_t n, inputs, outputs;
  int32_t accumulate;
};

template <class T>
__device__ __forceinline__ void linear_data(const LinearData<T>& a) {
  product(a.n, a.inputs, 0, a.outputs, Rows<T>{a.dy, a.outputs}, Columns<float>{a.weight, a.inputs},
          [&](int m, int n, float v) {
            T* dx = a.dx + (size_t)m * a.inputs + n;
            *dx = rounded<T>(a.accumulate ? to_float(*dx) + v : v);
          });
}
KERNEL(linear_data, LinearData)

template <class T>
struct LinearWeights {
  const T* x;
  const T* dy;
  float* d_weight;
  int32_t n, inputs, outputs;
};

template <class T>
__device__ __forceinline__ void linear_weights(const LinearWeights<T>& a) {
  product(a.outputs, a.inputs, 0, a.n, Columns<T>{a.dy, a.outputs}, Columns<T>{a.x, a.inputs},
          [&](int m, int n, float v) { a.d_weight[(size_t)m * a.inputs + n] = v; });
}
KERNEL(linear_weights, LinearWeights)

template <class T>
struct ColumnSums {
  const T* from;
  float* sums;
  int32_t rows, columns;
};

// Σ over rows, in f64: the gradient of a bias. A block sums 32 columns.
template <class T>
__device__ __forceinline__ void column_sums(const ColumnSums<T>& a) {
  SHARED(double, all, THREADS);
  const int c = (int)threadIdx.x % 32, lane = (int)threadIdx.x / 32, column = (int)blockIdx.x * 32 + c;
  double sum = 0.0;
  if (column < a.columns)
    for (int r = lane; r < a.rows; r += THREADS / 32) sum += to_float(a.from[(size_t)r * a.columns + column]);
  all[threadIdx.x] = sum;
  __syncthreads();
  if (lane == 0 && column < a.columns) {
    sum = 0.0;
    for (int l = 0; l < THREADS / 32; ++l) sum += all[l * 32 + c];
    a.sums[column] = (float)sum;
  }
}
KERNEL(column_sums, ColumnSums)

struct ConvSizes {
  int32_t n, height, width, c_in;
  int32_t out_height, out_width, c_out;
  int32_t kernel, stride, padding, groups;

  __device__ __forceinline__ int in() const { return c_in / groups; }
  __device__ __forceinline__ int out() const { return c_out / groups; }
};

// Input as the convolution reads it: element (output pixel, tap · in + channel) of one group.
template <class T>
struct Windows {
  static constexpr bool ALONG_K = true;
  const T* x;
  ConvSizes s;
  int group;
  __device__ __forceinline__ float operator()(int pixel, int k) const {
    const int tap = k / s.in(), c = k - tap * s.in();
    const int row = pixel / s.out_width, ox = pixel - row * s.out_width;
    const int image = row / s.out_height, oy = row - image * s.out_height;
    const int iy = oy * s.stride + tap / s.kernel - s.padding, ix = ox * s.stride + tap % s.kernel - s.padding;
    if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) return 0.0f;
    return to_float(x[(((size_t)image * s.height + iy) * s.width + ix) * s.c_in + group * s.in() + c]);
  }
};

// The same, element (tap · in + channel, output pixel).
template <class T>
struct WindowsAcross {
  static constexpr bool ALONG_K = false;
  Windows<T> windows;
  __device__ __forceinline__ float operator()(int n, int pixel) const { return windows(pixel, n); }
};

template <class T>
struct Conv {
  const T* x;
  const T* weight;    // [c_out, kernel, kernel, c_in / groups]
  const float* bias;  // or null
  T* y;
  ConvSizes s;
};

// Grid: tiles of pixels, tiles of channels, groups.
template <class T>
__device__ __forceinline__ void conv(const Conv<T>& a) {
  const ConvSizes& s = a.s;
  const int group = (int)blockIdx.z, K = s.kernel * s.kernel * s.in();
  const Rows<T> weight{a.weight + (size_t)group * s.out() * K, K};
  product(s.n * s.out_height * s.out_width, s.out(), 0, K, Windows<T>{a.x, s, group}, weight, [&](int m, int n, float v) {
    const int channel = group * s.out() + n;
    if (a.bias) v += a.bias[channel];
    a.y[(size_t)m * s.c_out + channel] = rounded<T>(v);
  });
}
KERNEL(conv, Conv)

// Gradient of the output as an input pixel sees it: element (input pixel, tap · out + channel) of one group.
template <class T>
struct Readers {
  static constexpr bool ALONG_K = true;
  const T* dy;
  ConvSizes s;
  int group;
  __device__ __forceinline__ float operator()(int pixel, int k) const {
    const int tap = k / s.out(), c = k - tap * s.out();
    const int row = pixel / s.width, ix = pixel - row * s.width;
    const int image = row / s.height, iy = row - image * s.height;
    const int y = iy + s.padding - tap / s.kernel, x = ix + s.padding - tap % s.kernel;
    if (y < 0 || x < 0 || y % s.stride || x % s.stride) return 0.0f;
    const int oy = y / s.stride, ox = x / s.stride;
    if (oy >= s.out_height || ox >= s.out_width) return 0.0f;
    return to_float(dy[(((size_t)image * s.out_height + oy) * s.out_width + ox) * s.c_out + group * s.out() + c]);
  }
};

// Weight of one group, element (input channel, tap · out + output channel).
template <class T>
struct WeightAcross {
  static constexpr bool ALONG_K = false;
  const T* weight;
  int in, out, taps;
  __device__ __forceinline__ float operator()(int c, int k) const {
    const int tap = k / out, o = k - tap * out;
    return to_float(weight[((size_t)o * taps + tap) * in + c]);
  }
};

template <class T>
struct ConvData {
  const T* dy;
  const T* weight;
  T* dx;
  ConvSizes s;
  int32_t accumulate;
};

template <class T>
__device__ __forceinline__ void conv_data(const ConvData<T>& a) {
  const ConvSizes& s = a.s;
  const int group = (int)blockIdx.z, taps = s.kernel * s.kernel;
  const WeightAcross<T> weight{a.weight + (size_t)group * s.out() * taps * s.in(), s.in(), s.out(), taps};
  product(s.n * s.height * s.width, s.in(), 0, taps * s.out(), Readers<T>{a.dy, s, group}, weight,
          [&](int m, int n, float v) {
            T* dx = a.dx + (size_t)m * s.c_in + group * s.in() + n;
            *dx = rounded<T>(a.accumulate ? to_float(*dx) + v : v);
          });
}
KERNEL(conv_data, ConvData)

template <class T>
struct ConvWeights {
  const T* x;
  const T* dy;
  float* partial;  // [splits, c_out, kernel, kernel, c_in / groups]
  ConvSizes s;
  int32_t splits;
  int32_t each;  // output pixels of a split
};

// Grid: tiles of output channels, tiles of taps and input channels, groups · splits.
template <class T>
__device__ __forceinline__ void conv_weights(const ConvWeights<T>& a) {
  const ConvSizes& s = a.s;
  const int group = (int)blockIdx.z / a.splits, split = (int)blockIdx.z % a.splits;
  const int pixels = s.n * s.out_height * s.out_width, N = s.kernel * s.kernel * s.in();
  const int begin = min(split * a.each, pixels), end = min(begin + a.each, pixels);
  float* out = a.partial + ((size_t)split * s.c_out + group * s.out()) * N;
  product(s.out(), N, begin, end, Columns<T>{a.dy + group * s.out(), s.c_out}, WindowsAcross<T>{{a.x, s, group}},
          [&](int m, int n, float v) { out[(size_t)m * N + n] = v; });
}
KERNEL(conv_weights, ConvWeights)
