// What heads need beside convolutions: maps brought to another size, channels put in and taken out, group normalisation
// (arXiv:1803.08494), gradients of layers that serve more than once.
#include "common.cuh"

struct ResizeSizes {
  int32_t n;
  int32_t height, width;
  int32_t out_height, out_width;
  int32_t channels;
  int32_t bilinear;
};

// What an output reads along one axis: (1 − weight) · first + weight · second.
struct Source {
  int first, second;
  float weight;

  __device__ __forceinline__ float weight_of(int i) const {
    return (first == i ? 1.0f - weight : 0.0f) + (second == i ? weight : 0.0f);
  }
};

// As `sources` in `src/kernels/resize.rs`, rounded after each operation so that ties fall to the same side.
__device__ __forceinline__ Source source_of(int input, int output, int bilinear, int o) {
  if (input == output) return {o, o, 0.0f};
  const int last = input - 1;
  const float ratio = (float)input / (float)output;
  if (!bilinear) {
    const int at = output == 2 * input ? o / 2 : min((int)floorf(__fmul_rn((float)o, ratio)), last);
    return {at, at, 0.0f};
  }
  const float at = at_least(__fadd_rn(__fmul_rn(ratio, (float)o + 0.5f), -0.5f), 0.0f);
  const int first = min((int)floorf(at), last);
  const float rest = at - (float)first;
  return {first, min(first + 1, last), rest > 1.0f ? 1.0f : rest};
}

// The first output whose source is at or behind input `i`; sources never go back.
template <class F>
__device__ __forceinline__ int first_where(int outputs, F reached) {
  int low = 0, high = outputs;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (reached(middle))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

template <class T>
struct Resize {
  const T* x;
  T* y;
  ResizeSizes s;
};

template <class T, int W>
__device__ __forceinline__ void resize_of(const Resize<T>& a) {
  const ResizeSizes& s = a.s;
  const bool equal = s.height == s.out_height && s.width == s.out_width;
  const int vectors = s.channels / W;
  const size_t len = (size_t)s.n * s.out_height * s.out_width * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t pixel = i / vectors, row = pixel / s.out_width;
    const int channel = (int)(i - pixel * vectors) * W, ox = (int)(pixel - row * s.out_width);
    const int image = (int)(row / s.out_height), oy = (int)(row - (size_t)image * s.out_height);
    const Source v = source_of(s.height, s.out_height, s.bilinear, oy);
    const Source h = source_of(s.width, s.out_width, s.bilinear, ox);
    const T* top = a.x + ((size_t)image * s.height + v.first) * s.width * s.channels + channel;
    float y[W];
    read<W>(top + (size_t)h.first * s.channels, y);
    if (s.bilinear && !equal) {
      const T* bottom = a.x + ((size_t)image * s.height + v.second) * s.width * s.channels + channel;
      float b[W], p[W], q[W];
      read<W>(top + (size_t)h.second * s.channels, b);
      read<W>(bottom + (size_t)h.first * s.channels, p);
      read<W>(bottom + (size_t)h.second * s.channels, q);
#pragma unroll
      for (int k = 0; k < W; ++k) {
        const float above = (1.0f - h.weight) * y[k] + h.weight * b[k], below = (1.0f - h.weight) * p[k] + h.weight * q[k];
        y[k] = (1.0f - v.weight) * above + v.weight * below;
      }
    }
    write<W>(a.y + i * W, y);
  }
}

template <class T>
__device__ __forceinline__ void resize(const Resize<T>& a) {
  if (a.s.channels % Wide<T>::W == 0)
    resize_of<T, Wide<T>::W>(a);
  else
    resize_of<T, 1>(a);
}
KERNEL(resize, Resize)

template <class T>
struct ResizeGradient {
  const T* dy;
  T* dx;
  ResizeSizes s;
  int32_t accumulate;
};

// Each value collects from the outputs that read it.
template <class T, int W>
__device__ __forceinline__ void resize_gradient_of(const ResizeGradient<T>& a) {
  const ResizeSizes& s = a.s;
  const int vectors = s.channels / W;
  const size_t len = (size_t)s.n * s.height * s.width * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t pixel = i / vectors, row = pixel / s.width;
    const int channel = (int)(i - pixel * vectors) * W, x = (int)(pixel - row * s.width);
    const int image = (int)(row / s.height), y = (int)(row - (size_t)image * s.height);
    auto vertical = [&](int o) { return source_of(s.height, s.out_height, s.bilinear, o); };
    auto horizontal = [&](int o) { return source_of(s.width, s.out_width, s.bilinear, o); };
    const int first_row = first_where(s.out_height, [&](int o) { return vertical(o).second >= y; });
    const int first_column = first_where(s.out_width, [&](int o) { return horizontal(o).second >= x; });
    float sum[W] = {};
    for (int oy = first_row; oy < s.out_height; ++oy) {
      const Source v = vertical(oy);
      if (v.first > y) break;
      const float down = v.weight_of(y);
      for (int ox = first_column; ox < s.out_width; ++ox) {
        const Source h = horizontal(ox);
        if (h.first > x) break;
        const float weight = down * h.weight_of(x);
        if (weight == 0.0f) continue;
        float dy[W];
        read<W>(a.dy + (((size_t)image * s.out_height + oy) * s.out_width + ox) * s.channels + channel, dy);
#pragma unroll
        for (int k = 0; k < W; ++k) sum[k] += weight * dy[k];
      }
    }
    if (a.accumulate) {
      float before[W];
      read<W>(a.dx + i * W, before);
#pragma unroll
      for (int k = 0; k < W; ++k) sum[k] += before[k];
    }
    write<W>(a.dx + i * W, sum);
  }
}

template <class T>
__device__ __forceinline__ void resize_gradient(const ResizeGradient<T>& a) {
  if (a.s.channels % Wide<T>::W == 0)
    resize_gradient_of<T, Wide<T>::W>(a);
  else
    resize_gradient_of<T, 1>(a);
}
KERNEL(resize_gradient, ResizeGradient)

template <class T>
struct MoveChannels {
  const T* from;
  T* to;
  uint64_t rows;
  int32_t channels;  // of the slice
  int32_t first;     // of them in the map
  int32_t of;        // channels of the map
  int32_t take;      // out of the map; else into it
  int32_t accumulate;
};

template <class T, int W>
__device__ __forceinline__ void move_channels_of(const MoveChannels<T>& a) {
  const size_t vectors = a.channels / W, len = a.rows * vectors, stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < len; i += stride) {
    const size_t row = i / vectors, slice = i * W, map = row * a.of + a.first + (i - row * vectors) * W;
    float v[W];
    read<W>(a.from + (a.take ? map : slice), v);
    T* to = a.to + (a.take ? slice : map);
    if (a.accumulate) {
      float before[W];
      read<W>(to, before);
#pragma unroll
      for (int k = 0; k < W; ++k) v[k] += before[k];
    }
    write<W>(to, v);
  }
}

template <class T>
__device__ __forceinline__ void move_channels(const MoveChannels<T>& a) {
  constexpr int W = Wide<T>::W;
  if (a.channels % W == 0 && a.first % W == 0 && a.of % W == 0)
    move_channels_of<T, W>(a);
  else
    move_channels_of<T, 1>(a);
}
KERNEL(move_channels, MoveChannels)

// The sum of what all threads of a block bring, in an order of its own; for all of them.
__device__ __forceinline__ double sum_of_block(double value) {
  SHARED(double, all, THREADS);
  all[threadIdx.x] = value;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];
    __syncthreads();
  }
  const double total = all[0];
  __syncthreads();
  return total;
}

// Σ over the chunks of an image, of field 0 or 1 of what `norm_sums` and `norm_gradient_sums` leave.
__device__ __forceinline__ double of_chunks(const float* partial, int image, int chunks, int channels, int field, int channel) {
  double sum = 0.0;
  for (int k = 0; k < chunks; ++k) sum += partial[(((size_t)image * chunks + k) * 2 + field) * channels + channel];
  return sum;
}

// Fields of `stats`, as in `norm.cu`: [6, images, channels].
__device__ __forceinline__ float* field_of(float* stats, int field, int images, int image, int channels) {
  return stats + ((size_t)field * images + image) * channels;
}

template <class T>
struct GroupNormFinish {
  const T* z;
  const float* partial;
  const float* weight;
  const float* bias;
  float* stats;
  int32_t images;  // that `stats` has room for
  int32_t pixels;
  int32_t channels;
  int32_t width;  // channels of a group
  int32_t chunks;
  float eps;
};

// Mean, 1/σ, scale and shift of an image's group of channels. Grid: groups of channels, images.
template <class T>
__device__ __forceinline__ void group_norm_finish(const GroupNormFinish<T>& a) {
  const int begin = (int)blockIdx.x * a.width, end = begin + a.width, image = (int)blockIdx.y;
  const double pixels = a.pixels, count = pixels * a.width;
  auto pivot = [&](int c) { return (double)to_float(a.z[(size_t)image * a.pixels * a.channels + c]); };
  double sum = 0.0;
  for (int c = begin + (int)threadIdx.x; c < end; c += THREADS)
    sum += pivot(c) * pixels + of_chunks(a.partial, image, a.chunks, a.channels, 0, c);
  const double mean = sum_of_block(sum) / count;
  // Within each channel, and of the channels' means around the whole.
  double spread = 0.0;
  for (int c = begin + (int)threadIdx.x; c < end; c += THREADS) {
    const double off = of_chunks(a.partial, image, a.chunks, a.channels, 0, c) / pixels;
    const double within = of_chunks(a.partial, image, a.chunks, a.channels, 1, c) - off * off * pixels;
    const double around = pivot(c) + off - mean;
    spread += (within < 0.0 ? 0.0 : within) + pixels * around * around;
  }
  const double inv_std = 1.0 / sqrt(sum_of_block(spread) / count + (double)a.eps);
  for (int c = begin + (int)threadIdx.x; c < end; c += THREADS) {
    const double scale = (double)a.weight[c] * inv_std;
    field_of(a.stats, 0, a.images, image, a.channels)[c] = (float)mean;
    field_of(a.stats, 1, a.images, image, a.channels)[c] = (float)inv_std;
    field_of(a.stats, 2, a.images, image, a.channels)[c] = (float)scale;
    field_of(a.stats, 3, a.images, image, a.channels)[c] = (float)((double)a.bias[c] - mean * scale);
  }
}
KERNEL(group_norm_finish, GroupNormFinish)

struct GroupNormGradient {
  const float* partial;
  float* stats;
  int32_t images;
  int32_t pixels;
  int32_t channels;
  int32_t width;
  int32_t chunks;
};

// The two terms of the data gradient, for an image's group of channels. Grid: groups of channels, images.
__device__ __forceinline__ void group_norm_gradient(const GroupNormGradient& a) {
  const int begin = (int)blockIdx.x * a.width, end = begin + a.width, image = (int)blockIdx.y;
  const double count = (double)a.pixels * a.width;
  double all = 0.0, along = 0.0;
  for (int c = begin + (int)threadIdx.x; c < end; c += THREADS) {
    const double scale = field_of(a.stats, 2, a.images, image, a.channels)[c];
    all += scale * of_chunks(a.partial, image, a.chunks, a.channels, 0, c);
    along += scale * of_chunks(a.partial, image, a.chunks, a.channels, 1, c);
  }
  all = sum_of_block(all);
  along = sum_of_block(along);
  const double inv_std = field_of(a.stats, 1, a.images, image, a.channels)[begin];
  for (int c = begin + (int)threadIdx.x; c < end; c += THREADS) {
    field_of(a.stats, 4, a.images, image, a.channels)[c] = (float)(-inv_std * inv_std * along / count);
    field_of(a.stats, 5, a.images, image, a.channels)[c] = (float)(-all / count);
  }
}
KERNEL_F32(group_norm_gradient, GroupNormGradient)

struct AddFloats {
  const float* from;
  float* to;
  uint64_t len;
};

// Parameters begin anywhere, so value by value.
__device__ __forceinline__ void add_floats(const AddFloats& a) {
  const size_t stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < a.len; i += stride) a.to[i] += a.from[i];
}
KERNEL_F32(add_floats, AddFloats)
