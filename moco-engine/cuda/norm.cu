// Batch normalisation (arXiv:1502.03167): statistics of every group, normalise + add + ReLU, gradient.
//
// Sums go in two passes of fixed order: each block sums its chunk of rows in f32, one more kernel adds the chunks in f64.
// They are taken around the group's first row, so that the variance stays accurate where the mean is large against it.
#include "common.cuh"

// Fields of `stats`, [6, groups, channels].
enum { MEAN, INV_STD, SCALE, SHIFT, SLOPE, OFFSET };

__device__ __forceinline__ size_t place(const Groups& groups, int channels, int field, int group) {
  return ((size_t)field * groups.count + group) * channels;
}

// Adds up what the threads of a block hold for the same channels, in the order of their rows, and writes it to
// `partial` [groups, chunks, 2, channels].
template <int W>
__device__ __forceinline__ void add_up(const Walk<W>& walk, const float (&sum)[W], const float (&other)[W], int channels,
                                       float* partial) {
  SHARED(float, all, THREADS * 2 * W);
  const int lanes = walk.lanes, tid = (int)threadIdx.x;
  if (walk.first_row < walk.step) {
#pragma unroll
    for (int k = 0; k < W; ++k) {
      all[(walk.first_row * 2 * W + k) * lanes + walk.lane] = sum[k];
      all[(walk.first_row * 2 * W + W + k) * lanes + walk.lane] = other[k];
    }
  }
  __syncthreads();
  float* out = partial + ((size_t)blockIdx.z * gridDim.x + blockIdx.x) * 2 * channels;
  for (int i = tid; i < 2 * W * lanes; i += THREADS) {
    const int k = i / lanes, lane = i % lanes;
    const int channel = ((int)blockIdx.y * lanes + lane) * W + k % W;
    if (channel < channels) {
      float total = 0.0f;
      for (int row = 0; row < walk.step; ++row) total += all[row * 2 * W * lanes + i];
      out[k / W * channels + channel] = total;
    }
  }
}

template <class T>
struct NormSums {
  const T* z;
  float* partial;
  Groups groups;
  int32_t channels;
  int32_t chunk;
};

template <class T, int W>
__device__ __forceinline__ void norm_sums_of(const NormSums<T>& a) {
  const Walk<W> walk(a.channels);
  const Group group = group_at(a.groups, blockIdx.z);
  const int begin = (int)blockIdx.x * a.chunk, end = min(begin + a.chunk, group.rows());
  float sum[W] = {}, square[W] = {};
  if (walk.active && begin < end) {
    float pivot[W];
    read<W>(a.z + group.row(0) * a.channels + walk.channel, pivot);
#pragma unroll 4
    for (int v = begin + walk.first_row; v < end; v += walk.step) {
      float z[W];
      read<W>(a.z + group.row(v) * a.channels + walk.channel, z);
#pragma unroll
      for (int k = 0; k < W; ++k) {
        const float d = z[k] - pivot[k];
        sum[k] += d;
        square[k] += d * d;
      }
    }
  }
  add_up<W>(walk, sum, square, a.channels, a.partial);
}

template <class T>
__device__ __forceinline__ void norm_sums(const NormSums<T>& a) {
  if (a.channels % Wide<T>::W == 0)
    norm_sums_of<T, Wide<T>::W>(a);
  else
    norm_sums_of<T, 1>(a);
}
KERNEL(norm_sums, NormSums)

// Channels and chunks that a block of a finishing kernel works on side by side.
#define FINISH_CHANNELS 32
#define FINISH_LANES (THREADS / FINISH_CHANNELS)

// Σ over the chunks of a group, in f64, for both fields; valid in the first lane of each channel.
__device__ __forceinline__ void add_chunks(const float* partial, int group, int chunks, int channels, double (&total)[2]) {
  SHARED(double, all, 2 * THREADS);
  const int c = (int)threadIdx.x % FINISH_CHANNELS, lane = (int)threadIdx.x / FINISH_CHANNELS;
  const int channel = (int)blockIdx.x * FINISH_CHANNELS + c;
  double sum = 0.0, other = 0.0;
  if (channel < channels)
    for (int k = lane; k < chunks; k += FINISH_LANES) {
      const float* chunk = partial + ((size_t)group * chunks + k) * 2 * channels + channel;
      sum += chunk[0];
      other += chunk[channels];
    }
  all[threadIdx.x] = sum;
  all[THREADS + threadIdx.x] = other;
  __syncthreads();
  total[0] = total[1] = 0.0;
  if (lane == 0)
    for (int k = 0; k < FINISH_LANES; ++k) {
      total[0] += all[k * FINISH_CHANNELS + c];
      total[1] += all[THREADS + k * FINISH_CHANNELS + c];
    }
  __syncthreads();
}

template <class T>
struct NormFinish {
  const T* z;
  const float* partial;
  const float* weight;
  const float* bias;
  float* running_mean;
  float* running_var;
  float* stats;
  Groups groups;
  int32_t channels;
  int32_t chunks;
  float eps;
  float momentum;
};

template <class T>
__device__ __forceinline__ void norm_finish(const NormFinish<T>& a) {
  const int channel = (int)blockIdx.x * FINISH_CHANNELS + (int)threadIdx.x % FINISH_CHANNELS;
  const bool writes = (int)threadIdx.x < FINISH_CHANNELS && channel < a.channels;
  const int present = min(a.groups.count, a.groups.n);
  // Each kept group moves its own copy of the old values and the copies are averaged; see `BnGroups`.
  const int kept = a.groups.interleaved ? present : 1;
  double mean_share = 0.0, var_share = 0.0;
  for (int g = 0; g < present; ++g) {
    const Group group = group_at(a.groups, g);
    double total[2];
    add_chunks(a.partial, g, a.chunks, a.channels, total);
    if (!writes) continue;
    const double count = group.rows(), off = total[0] / count;
    const double mean = (double)to_float(a.z[group.row(0) * a.channels + channel]) + off;
    const double spread = total[1] - total[0] * off, deviation = spread < 0.0 ? 0.0 : spread;
    const double inv_std = 1.0 / sqrt(deviation / count + (double)a.eps), scale = (double)a.weight[channel] * inv_std;
    a.stats[place(a.groups, a.channels, MEAN, g) + channel] = (float)mean;
    a.stats[place(a.groups, a.channels, INV_STD, g) + channel] = (float)inv_std;
    a.stats[place(a.groups, a.channels, SCALE, g) + channel] = (float)scale;
    a.stats[place(a.groups, a.channels, SHIFT, g) + channel] = (float)((double)a.bias[channel] - mean * scale);
    if (g < kept) {
      mean_share += mean / kept;
      var_share += deviation / (count - 1.0) / kept;
    }
  }
  if (writes) {
    const double m = a.momentum;
    a.running_mean[channel] = (float)((1.0 - m) * a.running_mean[channel] + m * mean_share);
    a.running_var[channel] = (float)((1.0 - m) * a.running_var[channel] + m * var_share);
  }
}
KERNEL(norm_finish, NormFinish)

struct NormRunning {
  const float* weight;
  const float* bias;
  const float* running_mean;
  const float* running_var;
  float* stats;
  Groups groups;
  int32_t channels;
  float eps;
};

// All fields from the running statistics, for every group; constants have no gradient.
__device__ __forceinline__ void norm_running(const NormRunning& a) {
  for (int i = (int)(blockIdx.x * THREADS + threadIdx.x); i < a.channels * a.groups.count; i += (int)(gridDim.x * THREADS)) {
    const int channel = i % a.channels;
    const double deviation = sqrt((double)a.running_var[channel] + (double)a.eps), mean = a.running_mean[channel];
    const double scale = (double)a.weight[channel] / deviation;
    a.stats[place(a.groups, a.channels, MEAN, 0) + i] = (float)mean;
    a.stats[place(a.groups, a.channels, INV_STD, 0) + i] = (float)(1.0 / deviation);
    a.stats[place(a.groups, a.channels, SCALE, 0) + i] = (float)scale;
    a.stats[place(a.groups, a.channels, SHIFT, 0) + i] = (float)((double)a.bias[channel] - mean * scale);
    a.stats[place(a.groups, a.channels, SLOPE, 0) + i] = 0.0f;
    a.stats[place(a.groups, a.channels, OFFSET, 0) + i] = 0.0f;
  }
}
KERNEL_F32(norm_running, NormRunning)

template <class T>
struct NormApply {
  const T* z;  // may be y
  const float* stats;
  const T* residual;             // or null
  const float* residual_stats;   // null: the residual is added as it is
  T* y;
  Groups groups;
  int32_t channels;
  int32_t chunk;
  int32_t relu;
};

template <class T, int W>
__device__ __forceinline__ void norm_apply_of(const NormApply<T>& a) {
  const Walk<W> walk(a.channels);
  const Group group = group_at(a.groups, blockIdx.z);
  const int begin = (int)blockIdx.x * a.chunk, end = min(begin + a.chunk, group.rows());
  if (!walk.active || begin >= end) return;
  const size_t at = place(a.groups, a.channels, SCALE, blockIdx.z) + walk.channel;
  const size_t fields = place(a.groups, a.channels, 1, 0);
  float scale[W], shift[W], scale2[W], shift2[W];
  read_row<W>(a.stats + at, scale);
  read_row<W>(a.stats + at + fields, shift);
  if (a.residual_stats) {
    read_row<W>(a.residual_stats + at, scale2);
    read_row<W>(a.residual_stats + at + fields, shift2);
  }
  const float floor = a.relu ? 0.0f : -INFINITY;
#pragma unroll 4
  for (int v = begin + walk.first_row; v < end; v += walk.step) {
    const size_t i = group.row(v) * a.channels + walk.channel;
    float z[W], r[W];
    read<W>(a.z + i, z);
    if (a.residual) read<W>(a.residual + i, r);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      float y = z[k] * scale[k] + shift[k];
      if (a.residual) y += a.residual_stats ? r[k] * scale2[k] + shift2[k] : r[k];
      z[k] = at_least(y, floor);
    }
    write<W>(a.y + i, z);
  }
}

template <class T>
__device__ __forceinline__ void norm_apply(const NormApply<T>& a) {
  if (a.channels % Wide<T>::W == 0)
    norm_apply_of<T, Wide<T>::W>(a);
  else
    norm_apply_of<T, 1>(a);
}
KERNEL(norm_apply, NormApply)

template <class T>
struct NormGradientSums {
  const T* z;
  const float* stats;
  const T* y;  // with `masked` 2: dy is set to 0 where y is not above 0
  T* dy;
  float* partial;
  Groups groups;
  int32_t channels;
  int32_t chunk;
  int32_t masked;  // 0: no, 1: by the sign of the normalised value, 2: by `y`
};

// Σ dy and Σ dy · (z − mean).
template <class T, int W>
__device__ __forceinline__ void norm_gradient_sums_of(const NormGradientSums<T>& a) {
  const Walk<W> walk(a.channels);
  const Group group = group_at(a.groups, blockIdx.z);
  const int begin = (int)blockIdx.x * a.chunk, end = min(begin + a.chunk, group.rows());
  float sum[W] = {}, dot[W] = {};
  if (walk.active && begin < end) {
    const size_t at = place(a.groups, a.channels, MEAN, blockIdx.z) + walk.channel;
    const size_t fields = place(a.groups, a.channels, 1, 0);
    float mean[W], scale[W], shift[W];
    read_row<W>(a.stats + at, mean);
    read_row<W>(a.stats + at + SCALE * fields, scale);
    read_row<W>(a.stats + at + SHIFT * fields, shift);
#pragma unroll 2
    for (int v = begin + walk.first_row; v < end; v += walk.step) {
      const size_t i = group.row(v) * a.channels + walk.channel;
      float z[W], dy[W], y[W];
      read<W>(a.z + i, z);
      read<W>(a.dy + i, dy);
      if (a.masked == 2) read<W>(a.y + i, y);
#pragma unroll
      for (int k = 0; k < W; ++k) {
        if (a.masked == 1 && !(z[k] * scale[k] + shift[k] > 0.0f)) dy[k] = 0.0f;
        if (a.masked == 2 && !(y[k] > 0.0f)) dy[k] = 0.0f;
        sum[k] += dy[k];
        dot[k] += dy[k] * (z[k] - mean[k]);
      }
      if (a.masked == 2) write<W>(a.dy + i, dy);
    }
  }
  add_up<W>(walk, sum, dot, a.channels, a.partial);
}

template <class T>
__device__ __forceinline__ void norm_gradient_sums(const NormGradientSums<T>& a) {
  if (a.channels % Wide<T>::W == 0)
    norm_gradient_sums_of<T, Wide<T>::W>(a);
  else
    norm_gradient_sums_of<T, 1>(a);
}
KERNEL(norm_gradient_sums, NormGradientSums)

struct NormGradientFinish {
  const float* partial;
  float* stats;
  float* d_weight;
  float* d_bias;
  Groups groups;
  int32_t channels;
  int32_t chunks;
  int32_t constant;  // the statistics do not depend on the batch: the data gradient has no terms from here
};

__device__ __forceinline__ void norm_gradient_finish(const NormGradientFinish& a) {
  const int channel = (int)blockIdx.x * FINISH_CHANNELS + (int)threadIdx.x % FINISH_CHANNELS;
  const bool writes = (int)threadIdx.x < FINISH_CHANNELS && channel < a.channels;
  double weight = 0.0, bias = 0.0;
  for (int g = 0; g < min(a.groups.count, a.groups.n); ++g) {
    const Group group = group_at(a.groups, g);
    double total[2];
    add_chunks(a.partial, g, a.chunks, a.channels, total);
    if (!writes) continue;
    const double inv_std = a.stats[place(a.groups, a.channels, INV_STD, g) + channel];
    const double scale = a.stats[place(a.groups, a.channels, SCALE, g) + channel], count = group.rows();
    weight += total[1] * inv_std;
    bias += total[0];
    if (a.constant) continue;
    a.stats[place(a.groups, a.channels, SLOPE, g) + channel] = (float)(-scale * inv_std * inv_std * total[1] / count);
    a.stats[place(a.groups, a.channels, OFFSET, g) + channel] = (float)(-scale * total[0] / count);
  }
  if (writes) {
    a.d_weight[channel] = (float)weight;
    a.d_bias[channel] = (float)bias;
  }
}
KERNEL_F32(norm_gradient_finish, NormGradientFinish)

template <class T>
struct NormGradientApply {
  const T* z;  // null where nothing depends on it
  const float* stats;
  const T* dy;  // may be dz
  T* dz;
  Groups groups;
  int32_t channels;
  int32_t chunk;
  int32_t masked;  // by the sign of the normalised value
  int32_t accumulate;
};

// dz (+)= scale · dy + slope · (z − mean) + offset.
template <class T, int W>
__device__ __forceinline__ void norm_gradient_apply_of(const NormGradientApply<T>& a) {
  const Walk<W> walk(a.channels);
  const Group group = group_at(a.groups, blockIdx.z);
  const int begin = (int)blockIdx.x * a.chunk, end = min(begin + a.chunk, group.rows());
  if (!walk.active || begin >= end) return;
  const size_t at = place(a.groups, a.channels, MEAN, blockIdx.z) + walk.channel;
  const size_t fields = place(a.groups, a.channels, 1, 0);
  float mean[W], scale[W], shift[W], slope[W], offset[W];
  read_row<W>(a.stats + at, mean);
  read_row<W>(a.stats + at + SCALE * fields, scale);
  read_row<W>(a.stats + at + SHIFT * fields, shift);
  read_row<W>(a.stats + at + SLOPE * fields, slope);
  read_row<W>(a.stats + at + OFFSET * fields, offset);
  const float bar = a.masked ? 0.0f : -INFINITY;
#pragma unroll 2
  for (int v = begin + walk.first_row; v < end; v += walk.step) {
    const size_t i = group.row(v) * a.channels + walk.channel;
    float z[W], dy[W], before[W] = {};
    if (a.z) {
      read<W>(a.z + i, z);
    } else {
#pragma unroll
      for (int k = 0; k < W; ++k) z[k] = mean[k];
    }
    read<W>(a.dy + i, dy);
    if (a.accumulate) read<W>(a.dz + i, before);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const float g = z[k] * scale[k] + shift[k] > bar ? dy[k] : 0.0f;
      dy[k] = g * scale[k] + slope[k] * (z[k] - mean[k]) + offset[k] + before[k];
    }
    write<W>(a.dz + i, dy);
  }
}

template <class T>
__device__ __forceinline__ void norm_gradient_apply(const NormGradientApply<T>& a) {
  if (a.channels % Wide<T>::W == 0)
    norm_gradient_apply_of<T, Wide<T>::W>(a);
  else
    norm_gradient_apply_of<T, 1>(a);
}
KERNEL(norm_gradient_apply, NormGradientApply)
