// Optimisers over groups of parameters, the norm of a gradient. Groups begin anywhere, so a value a thread; neighbours lie side by
// side, so memory is read in whole lines all the same.
#include "common.cuh"

struct SgdGroup {
  float* params;
  const float* gradients;
  float* velocity;
  uint64_t len;
  float lr, momentum, weight_decay;
  int32_t nesterov;
};

__device__ __forceinline__ void sgd_group(const SgdGroup& a) {
  const size_t stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < a.len; i += stride) {
    const float d = a.gradients[i] + a.weight_decay * a.params[i], v = a.momentum * a.velocity[i] + d;
    a.velocity[i] = v;
    a.params[i] -= a.lr * (a.nesterov ? d + a.momentum * v : v);
  }
}
KERNEL_F32(sgd_group, SgdGroup)

struct AdamW {
  float* params;
  const float* gradients;
  float* first;
  float* second;
  uint64_t len;
  float beta1, beta2, new1, new2;
  float rate;  // lr / (1 − β₁ᵗ)
  float kept;  // 1 − lr · weight decay
  float root;  // √(1 − β₂ᵗ)
  float eps;
};

__device__ __forceinline__ void adamw(const AdamW& a) {
  const size_t stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < a.len; i += stride) {
    const float g = a.gradients[i];
    const float m = a.beta1 * a.first[i] + a.new1 * g, v = a.beta2 * a.second[i] + a.new2 * g * g;
    a.first[i] = m;
    a.second[i] = v;
    a.params[i] = a.params[i] * a.kept - a.rate * (m / (sqrtf(v) / a.root + a.eps));
  }
}
KERNEL_F32(adamw, AdamW)

struct Scale {
  float* values;
  uint64_t len;
  float factor;
};

__device__ __forceinline__ void scale(const Scale& a) {
  const size_t stride = (size_t)gridDim.x * THREADS;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < a.len; i += stride) a.values[i] *= a.factor;
}
KERNEL_F32(scale, Scale)

struct SquareSums {
  const float* values;
  double* sums;  // one a block
  uint64_t len;
};

__device__ __forceinline__ void square_sums(const SquareSums& a) {
  SHARED(double, all, THREADS);
  const size_t stride = (size_t)gridDim.x * THREADS;
  double sum = 0.0;
  for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < a.len; i += stride)
    sum += (double)a.values[i] * (double)a.values[i];
  all[threadIdx.x] = sum;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) a.sums[blockIdx.x] = all[0];
}
KERNEL_F32(square_sums, SquareSums)
