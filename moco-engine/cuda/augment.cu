// Views of decoded images: crop and resize in two passes of fixed-point sums, the operations on colours and the blur in 8
// bits, then normalised values. Value for value what moco-image computes on the CPU; its `ViewTables` are what the kernels
// read: a header a view, and the tables to which it points.
#include "common.cuh"

// Words of a header; `augment/program.rs` of moco-image writes them.
#define VIEW_HEADER 48
enum ViewWord {
  VIEW_SOURCE = 0,
  VIEW_BETWEEN = 2,
  VIEW_STRIDE = 4,
  VIEW_VERTICAL_FIRST = 5,
  VIEW_ROWS = 6,
  VIEW_COLUMNS = 7,
  VIEW_ORIGIN = 8,
  VIEW_FIRST = 9,
  VIEW_SECOND = 12,
  VIEW_FLIP = 15,
  VIEW_OPS = 16,
  VIEW_OP = 20
};

// The fixed point of a resize: PIL's 32 − 8 − 2 bits.
#define VIEW_BITS 22

// Products that no compiler fuses with the addition that follows, which would round once instead of twice.
#ifdef MOCO_EMULATION
#define ROUNDED_PRODUCT(a, b) ((a) * (b))
#define ROUNDED_PRODUCT_F64(a, b) ((a) * (b))
#else
#define ROUNDED_PRODUCT(a, b) __fmul_rn(a, b)
#define ROUNDED_PRODUCT_F64(a, b) __dmul_rn(a, b)
#endif

struct Views {
  const uint8_t* pixels;  // decoded, HWC, one image after the other
  const int32_t* table;   // headers [n, VIEW_HEADER], then their tables
  uint8_t* between;       // what the first passes leave
  uint8_t* image;         // [n, height, width, channels]
  uint8_t* other;         // as large; the blur goes to and fro
  const float* normal;    // [channels, 256]
  float* out;             // [n, height, width, channels]
  int32_t n, height, width, channels;
};
// One type a kernel.
struct ViewFirst {
  Views views;
};
struct ViewSecond {
  Views views;
};
struct ViewColour {
  Views views;
};
struct ViewNormal {
  Views views;
};

__device__ __forceinline__ const int32_t* view_header(const Views& a, int view) {
  return a.table + (size_t)view * VIEW_HEADER;
}

__device__ __forceinline__ size_t view_offset(const int32_t* header, int word) {
  return (size_t)(uint32_t)header[word] | (size_t)(uint32_t)header[word + 1] << 32;
}

// One output of a pass: the weights of `pass` for output `i` over values that lie `step` bytes apart.
__device__ __forceinline__ uint8_t view_sum(const Views& a, const int32_t* header, int pass, int i, const uint8_t* from, int step) {
  const int count = a.table[header[pass] + 2 * i + 1];
  const int32_t* weights = a.table + header[pass + 1] + i * header[pass + 2];
  int32_t sum = 1 << (VIEW_BITS - 1);
  for (int t = 0; t < count; ++t) sum += weights[t] * (int32_t)from[(size_t)t * step];
  const int32_t value = sum >> VIEW_BITS;
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

// From the crop to what lies between the passes. Grid: chunks of values, 1, views.
__device__ __forceinline__ void view_first(const ViewFirst& arguments) {
  const Views& a = arguments.views;
  const int32_t* header = view_header(a, (int)blockIdx.z);
  const uint8_t* source = a.pixels + view_offset(header, VIEW_SOURCE);
  uint8_t* between = a.between + view_offset(header, VIEW_BETWEEN);
  const int columns = header[VIEW_COLUMNS], stride = header[VIEW_STRIDE], origin = header[VIEW_ORIGIN], c = a.channels;
  const int values = header[VIEW_ROWS] * columns * c;
  for (int v = (int)blockIdx.x * THREADS + (int)threadIdx.x; v < values; v += (int)gridDim.x * THREADS) {
    const int channel = v % c, x = v / c % columns, y = v / c / columns;
    if (header[VIEW_VERTICAL_FIRST]) {
      const int first = a.table[header[VIEW_FIRST] + 2 * y];
      const uint8_t* from = source + (size_t)first * stride + (size_t)(origin + x) * c + channel;
      between[v] = view_sum(a, header, VIEW_FIRST, y, from, stride);
    } else {
      const int first = a.table[header[VIEW_FIRST] + 2 * x];
      const uint8_t* from = source + (size_t)(origin + y) * stride + (size_t)first * c + channel;
      between[v] = view_sum(a, header, VIEW_FIRST, x, from, c);
    }
  }
}
KERNEL_F32(view_first, ViewFirst)

// From there to the view. Grid: chunks of values, 1, views.
__device__ __forceinline__ void view_second(const ViewSecond& arguments) {
  const Views& a = arguments.views;
  const int view = (int)blockIdx.z, c = a.channels, values = a.height * a.width * c;
  const int32_t* header = view_header(a, view);
  const uint8_t* between = a.between + view_offset(header, VIEW_BETWEEN);
  uint8_t* image = a.image + (size_t)view * values;
  const int columns = header[VIEW_COLUMNS], origin = header[VIEW_ORIGIN];
  for (int v = (int)blockIdx.x * THREADS + (int)threadIdx.x; v < values; v += (int)gridDim.x * THREADS) {
    const int channel = v % c, x = v / c % a.width, y = v / c / a.width;
    if (header[VIEW_VERTICAL_FIRST]) {
      const int first = a.table[header[VIEW_SECOND] + 2 * x] - origin;
      image[v] = view_sum(a, header, VIEW_SECOND, x, between + ((size_t)y * columns + first) * c + channel, c);
    } else {
      const int first = a.table[header[VIEW_SECOND] + 2 * y] - origin;
      image[v] = view_sum(a, header, VIEW_SECOND, y, between + ((size_t)first * columns + x) * c + channel, columns * c);
    }
  }
}
KERNEL_F32(view_second, ViewSecond)

// PIL's luma: ITU-R 601-2 in 16-bit fixed point.
__device__ __forceinline__ uint32_t view_luma(const uint8_t* p) {
  return (p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u) >> 16;
}

// libImaging/Blend.c: single precision, truncated, clipped.
__device__ __forceinline__ uint8_t view_blend(uint32_t from, uint32_t to, float factor) {
  const float v = (float)from + ROUNDED_PRODUCT(factor, (float)to - (float)from);
  return (uint8_t)(v <= 0.0f ? 0.0f : v >= 255.0f ? 255.0f : v);
}

// Half away from 0, of what is at least 0.
__device__ __forceinline__ uint8_t view_round(double v) { return (uint8_t)(int32_t)(v + 0.5); }

// To PIL's 8-bit HSV, `shift` added to the hue modulo 256, and back (libImaging/Convert.c).
__device__ __forceinline__ void view_hue(uint8_t* p, uint32_t shift) {
  const int r = p[0], g = p[1], b = p[2];
  const int high = r > g ? (r > b ? r : b) : (g > b ? g : b), low = r < g ? (r < b ? r : b) : (g < b ? g : b);
  const int chroma = high - low, middle = r + g + b - high - low;
  uint32_t hue = 0, saturation = 0;
  if (chroma > 0) {
    // Of the three quotients the smallest channel's is 1 and the largest's 0: the hue in sixths is a base plus or minus
    // the middle one's.
    const double quotient = (double)((float)(high - middle) / (float)chroma);
    double sixths;
    if (r == high) sixths = g == low ? -1.0 + quotient : 1.0 - quotient;
    else if (g == high) sixths = b == low ? 1.0 + quotient : 3.0 - quotient;
    else sixths = r == low ? 3.0 + quotient : 5.0 - quotient;
    const double turns = (double)(float)sixths / 6.0 + 1.0;
    hue = (uint32_t)((double)(float)(turns >= 1.0 ? turns - 1.0 : turns) * 255.0);
    saturation = (uint32_t)((double)((float)chroma / (float)high) * 255.0);
  }
  hue = (hue + shift) & 255;
  const double place = ROUNDED_PRODUCT_F64((double)hue, 6.0) / 255.0;
  const int whole = (int)place;
  const double position = (double)(float)(place - (double)whole), fraction = (double)(float)((double)saturation / 255.0);
  const double v = (double)high;
  const uint8_t h = (uint8_t)high, bottom = view_round(ROUNDED_PRODUCT_F64(v, 1.0 - fraction));
  const uint8_t falling = view_round(ROUNDED_PRODUCT_F64(v, 1.0 - ROUNDED_PRODUCT_F64(fraction, position)));
  const uint8_t rising = view_round(ROUNDED_PRODUCT_F64(v, 1.0 - ROUNDED_PRODUCT_F64(fraction, 1.0 - position)));
  const int sector = whole % 6;
  p[0] = sector == 0 || sector == 5 ? h : sector == 1 ? falling : sector == 4 ? rising : bottom;
  p[1] = sector == 1 || sector == 2 ? h : sector == 3 ? falling : sector == 0 ? rising : bottom;
  p[2] = sector == 3 || sector == 4 ? h : sector == 5 ? falling : sector == 2 ? rising : bottom;
}

// One of the six box blurs of a Gaussian blur, along rows or columns; edges repeat.
__device__ __forceinline__ void view_box(const Views& a, const uint8_t* from, uint8_t* to, const int32_t* op, bool rows) {
  const int c = a.channels, radius = op[1], len = rows ? a.width : a.height, step = rows ? c : a.width * c;
  const uint32_t inner = (uint32_t)op[2], outer = (uint32_t)op[3];
  for (int v = (int)threadIdx.x; v < a.height * a.width * c; v += THREADS) {
    const int at = rows ? v / c % a.width : v / c / a.width;
    const uint8_t* line = from + v - (size_t)at * step;
    uint32_t sum = 0;
    for (int i = at - radius; i <= at + radius; ++i) sum += line[(size_t)(i < 0 ? 0 : i >= len ? len - 1 : i) * step];
    const int before = at - radius - 1, after = at + radius + 1;
    const uint32_t far = (uint32_t)line[(size_t)(before < 0 ? 0 : before) * step] + line[(size_t)(after >= len ? len - 1 : after) * step];
    to[v] = (uint8_t)((sum * inner + far * outer + (1u << 23)) >> 24);
  }
}

// All operations of a view, in order. Grid: views; a block a view, because contrast needs all of it and a blur its
// neighbours.
__device__ __forceinline__ void view_colour(const ViewColour& arguments) {
  const Views& a = arguments.views;
  SHARED(uint32_t, sums, THREADS);
  const int c = a.channels, pixels = a.height * a.width, values = pixels * c, thread = (int)threadIdx.x;
  const int32_t* header = view_header(a, (int)blockIdx.x);
  uint8_t* image = a.image + (size_t)blockIdx.x * values;
  uint8_t* other = a.other + (size_t)blockIdx.x * values;
  for (int k = 0; k < header[VIEW_OPS]; ++k) {
    const int32_t* op = header + VIEW_OP + 4 * k;
    float factor;
    memcpy(&factor, op + 1, sizeof factor);
    uint32_t against = 0;
    if (op[0] == 2) {
      // Contrast blends with the mean luma (of other images: the mean value), rounded.
      uint32_t sum = 0;
      if (c == 3) {
        for (int p = thread; p < pixels; p += THREADS) sum += view_luma(image + 3 * p);
      } else {
        for (int v = thread; v < values; v += THREADS) sum += image[v];
      }
      sums[thread] = sum;
      __syncthreads();
      for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) sums[thread] += sums[thread + half];
        __syncthreads();
      }
      against = (uint32_t)((double)sums[0] / (double)(c == 3 ? pixels : values) + 0.5);
    }
    switch (op[0]) {
      case 1:
      case 2:
        for (int v = thread; v < values; v += THREADS) image[v] = view_blend(against, image[v], factor);
        break;
      case 3:
        // A factor of 1 changes nothing, and is not computed on the CPU either.
        for (int p = thread; factor != 1.0f && p < pixels; p += THREADS) {
          const uint32_t grey = view_luma(image + 3 * p);
          for (int i = 0; i < 3; ++i) image[3 * p + i] = view_blend(grey, image[3 * p + i], factor);
        }
        break;
      case 4:
        for (int p = thread; p < pixels; p += THREADS) view_hue(image + 3 * p, (uint32_t)op[1]);
        break;
      case 5:
        for (int p = thread; p < pixels; p += THREADS) {
          const uint8_t grey = (uint8_t)view_luma(image + 3 * p);
          for (int i = 0; i < 3; ++i) image[3 * p + i] = grey;
        }
        break;
      case 6:
        for (int pass = 0; pass < 6; ++pass) {
          view_box(a, pass % 2 ? other : image, pass % 2 ? image : other, op, pass < 3);
          __syncthreads();
        }
        break;
      default:
        for (int v = thread; v < values; v += THREADS) image[v] = image[v] < op[1] ? image[v] : (uint8_t)(255 - image[v]);
    }
    __syncthreads();
  }
}
KERNEL_F32(view_colour, ViewColour)

// Mirrored where asked for, and from bytes to the network's numbers. Grid: chunks of values, 1, views.
__device__ __forceinline__ void view_normal(const ViewNormal& arguments) {
  const Views& a = arguments.views;
  const int view = (int)blockIdx.z, c = a.channels, values = a.height * a.width * c;
  const bool flip = view_header(a, view)[VIEW_FLIP] != 0;
  const uint8_t* image = a.image + (size_t)view * values;
  float* out = a.out + (size_t)view * values;
  for (int v = (int)blockIdx.x * THREADS + (int)threadIdx.x; v < values; v += (int)gridDim.x * THREADS) {
    const int channel = v % c, x = v / c % a.width, from = flip ? v + (a.width - 1 - 2 * x) * c : v;
    out[v] = a.normal[channel * 256 + image[from]];
  }
}
KERNEL_F32(view_normal, ViewNormal)
