// Rows of unit length, and InfoNCE against a queue whose logits are never written out.
//
// A block holds 32 queries and walks down a stripe of the queue in tiles of 32 keys with a running maximum and sum per
// query (the streaming softmax of arXiv:1805.02867); stripes are merged in order. All in f32, sums across stripes in f64.
#include "common.cuh"

struct Normalise {
  const float* x;
  const float* dy;  // null: forward
  float* out;
  int32_t n, dim;
};

// Σ over a block's threads, in order; every thread gets it.
__device__ __forceinline__ double block_sum(double v) {
  SHARED(double, all, THREADS);
  all[threadIdx.x] = v;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = all[0];
  __syncthreads();
  return sum;
}

// y = x / max(‖x‖, 1e-12), or its gradient; a block a row.
__device__ __forceinline__ void normalise(const Normalise& a) {
  const float EPS = 1e-12f;
  const float *x = a.x + (size_t)blockIdx.x * a.dim, *dy = a.dy ? a.dy + (size_t)blockIdx.x * a.dim : nullptr;
  float* out = a.out + (size_t)blockIdx.x * a.dim;
  double square = 0.0, dot = 0.0;
  for (int j = (int)threadIdx.x; j < a.dim; j += THREADS) {
    square += (double)x[j] * x[j];
    if (dy) dot += (double)x[j] * dy[j];
  }
  const float norm = (float)sqrt(block_sum(square)), scale = 1.0f / (norm < EPS ? EPS : norm);
  dot = block_sum(dot);
  const float along = norm > EPS ? (float)(dot * (double)scale * (double)scale) : 0.0f;
  for (int j = (int)threadIdx.x; j < a.dim; j += THREADS) out[j] = dy ? (dy[j] - x[j] * along) * scale : x[j] * scale;
}
KERNEL_F32(normalise, Normalise)

#define QUERIES 32
#define KEYS 32
#define DIMS 128
#define PITCH (DIMS + 4)

struct Contrast {
  const float* query;
  const float* queue;
  const uint64_t* query_image;  // or null
  const uint64_t* queue_image;
  float* pulls;   // [stripes, n, dim] Σ exp(logit − max) · key
  float* bounds;  // [stripes, n, 2] largest logit and Σ exp(logit − max)
  double* totals;  // [stripes, n, 2] Σ logit and how many, of those that count
  uint64_t keys;
  uint64_t stripe;  // keys of a stripe, whole tiles
  int32_t n, dim;
  float scale;  // 1 / temperature
};

// Brings `rows` rows of up to DIMS columns from `first_column` into shared memory, 0 outside.
__device__ __forceinline__ void bring(const float* from, uint64_t first_row, uint64_t rows_total, int dim, int first_column,
                                      float* to) {
  for (int i = (int)threadIdx.x; i < QUERIES * DIMS; i += THREADS) {
    const int row = i / DIMS, column = i % DIMS;
    const bool inside = first_row + row < rows_total && first_column + column < dim;
    to[row * PITCH + column] = inside ? from[(first_row + row) * dim + first_column + column] : 0.0f;
  }
}

// Grid: tiles of queries, stripes, chunks of DIMS columns of the gradient.
__device__ __forceinline__ void contrast(const Contrast& a) {
  SHARED(float, queries, QUERIES * PITCH);
  SHARED(float, keys, KEYS * PITCH);
  SHARED(float, weights, QUERIES * (KEYS + 1));
  const int tid = (int)threadIdx.x, stripe = (int)blockIdx.y, own = (int)blockIdx.z * DIMS;
  const int chunks = (a.dim + DIMS - 1) / DIMS, q0 = (int)blockIdx.x * QUERIES;
  const uint64_t begin = stripe * a.stripe, end = begin + a.stripe < a.keys ? begin + a.stripe : a.keys;
  // Eight neighbouring threads share a query: four of its logits each, and 16 columns of its pull.
  const int q = tid / 8, part = tid % 8;
  const bool real = q0 + q < a.n;
  const uint64_t NONE = ~0ull, image = a.query_image && real ? a.query_image[q0 + q] : NONE;
  float largest = -INFINITY, pull[DIMS / 8] = {};
  double sum = 0.0, total = 0.0, count = 0.0;
  if (chunks == 1) bring(a.query, q0, a.n, a.dim, 0, queries);
  for (uint64_t k0 = begin; k0 < end; k0 += KEYS) {
    float logit[KEYS / 8] = {};
    for (int c = 0; c < chunks; ++c) {
      // The block's own columns come last, so that they lie in shared memory when the pull needs them.
      const int first = (c + (int)blockIdx.z + 1) % chunks * DIMS;
      __syncthreads();
      if (chunks > 1) bring(a.query, q0, a.n, a.dim, first, queries);
      bring(a.queue, k0, end, a.dim, first, keys);
      __syncthreads();
#pragma unroll 4
      for (int j = 0; j < DIMS; j += 4) {
        float x[4];
        read<4>(queries + q * PITCH + j, x);
#pragma unroll
        for (int k = 0; k < KEYS / 8; ++k) {
          float y[4];
          read<4>(keys + (part + 8 * k) * PITCH + j, y);
          logit[k] += x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
        }
      }
    }
    float now = largest;
#pragma unroll
    for (int k = 0; k < KEYS / 8; ++k) {
      const uint64_t key = k0 + part + 8 * k;
      const bool counts = key < end && !(a.query_image && image != NONE && a.queue_image[key] == image);
      logit[k] = counts ? logit[k] * a.scale : -INFINITY;
      if (counts) {
        total += logit[k];
        count += 1.0;
      }
      now = logit[k] > now ? logit[k] : now;  // A NaN is no maximum; it makes the sum NaN.
    }
    for (int mask = 1; mask < 8; mask *= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, now, mask);
      now = other > now ? other : now;
    }
    const float rescale = largest == -INFINITY ? 0.0f : expf(largest - now);
    largest = now;
    sum *= rescale;
#pragma unroll
    for (int k = 0; k < KEYS / 8; ++k) {
      const float weight = logit[k] == -INFINITY ? 0.0f : expf(logit[k] - now);
      sum += weight;
      weights[q * (KEYS + 1) + part + 8 * k] = weight;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < DIMS / 8; ++j) pull[j] *= rescale;
    for (int k = 0; k < KEYS; ++k) {
      const float weight = weights[q * (KEYS + 1) + k];
#pragma unroll
      for (int j = 0; j < DIMS / 8; ++j) pull[j] += weight * keys[k * PITCH + part + 8 * j];
    }
  }
  for (int mask = 1; mask < 8; mask *= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    total += __shfl_xor_sync(0xffffffffu, total, mask);
    count += __shfl_xor_sync(0xffffffffu, count, mask);
  }
  if (!real) return;
  const size_t at = (size_t)stripe * a.n + q0 + q;
#pragma unroll
  for (int j = 0; j < DIMS / 8; ++j)
    if (own + part + 8 * j < a.dim) a.pulls[at * a.dim + own + part + 8 * j] = pull[j];
  if (part == 0 && own == 0) {
    a.bounds[2 * at] = largest;
    a.bounds[2 * at + 1] = (float)sum;
    a.totals[2 * at] = total;
    a.totals[2 * at + 1] = count;
  }
}
KERNEL_F32(contrast, Contrast)

struct ContrastMerge {
  const float* query;
  const float* key;
  const float* pulls;
  const float* bounds;
  const double* totals;
  float* d_query;
  double* results;  // [n, 5] loss, correct, q · k₊, Σ of the logits that count, how many
  int32_t n, dim, stripes;
  float temperature;
};

// A block a query.
__device__ __forceinline__ void contrast_merge(const ContrastMerge& a) {
  const int q = (int)blockIdx.x;
  const float *query = a.query + (size_t)q * a.dim, *key = a.key + (size_t)q * a.dim;
  double dot = 0.0;
  for (int j = (int)threadIdx.x; j < a.dim; j += THREADS) dot += (double)query[j] * key[j];
  const double positive = block_sum(dot), logit = positive / a.temperature;
  float largest = -INFINITY;
  for (int s = 0; s < a.stripes; ++s) {
    const float bound = a.bounds[2 * ((size_t)s * a.n + q)];
    largest = bound > largest ? bound : largest;
  }
  const double max = largest > logit ? (double)largest : logit, mine = exp(logit - max);
  double sum = mine, total = 0.0, count = 0.0;
  for (int s = 0; s < a.stripes; ++s) {
    const size_t at = 2 * ((size_t)s * a.n + q);
    const double bound = a.bounds[at];
    sum += bound == -INFINITY ? (double)a.bounds[at + 1] : a.bounds[at + 1] * exp(bound - max);
    total += a.totals[at];
    count += a.totals[at + 1];
  }
  const double scale = 1.0 / ((double)a.temperature * a.n);
  for (int j = (int)threadIdx.x; j < a.dim; j += THREADS) {
    double pull = (mine / sum - 1.0) * key[j];
    for (int s = 0; s < a.stripes; ++s) {
      const size_t at = (size_t)s * a.n + q;
      const double bound = a.bounds[2 * at];
      const double weight = bound == -INFINITY ? 0.0 : exp(bound - max);
      pull += weight / sum * a.pulls[at * a.dim + j];
    }
    a.d_query[(size_t)q * a.dim + j] = (float)(pull * scale);
  }
  if (threadIdx.x == 0) {
    double* out = a.results + 5 * (size_t)q;
    out[0] = log(sum) + max - logit;
    // Rounded to f32 as the negatives are, so that equal similarities tie.
    out[1] = (float)logit >= largest && sum - sum == 0.0 ? 1.0 : 0.0;
    out[2] = positive;
    out[3] = total;
    out[4] = count;
  }
}
KERNEL_F32(contrast_merge, ContrastMerge)

struct ContrastResult {
  const double* results;
  double* out;  // mean loss, correct, mean q · k₊, mean q · k₋
  int32_t n;
  float temperature;
};

// One block.
__device__ __forceinline__ void contrast_result(const ContrastResult& a) {
  double sums[5];
  for (int f = 0; f < 5; ++f) {
    double sum = 0.0;
    for (int q = (int)threadIdx.x; q < a.n; q += THREADS) sum += a.results[5 * (size_t)q + f];
    sums[f] = block_sum(sum);
  }
  if (threadIdx.x == 0) {
    a.out[0] = sums[0] / a.n;
    a.out[1] = sums[1];
    a.out[2] = sums[2] / a.n;
    a.out[3] = sums[4] > 0.0 ? sums[3] / sums[4] * a.temperature : 0.0;
  }
}
KERNEL_F32(contrast_result, ContrastResult)
