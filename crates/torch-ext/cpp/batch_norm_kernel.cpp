// The arithmetic of batch normalization on the CPU, free of libtorch.
#include "batch_norm.h"

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FNET_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FNET_CLONES
#endif

namespace fnet {

namespace {

// Rows that are added in float32 before the sum moves to float64: few enough to lose nothing that matters.
constexpr int64_t kRowsInFloat = 16;

}  // namespace

FNET_CLONES void add_moments(const float* __restrict x, int64_t rows, int64_t channels, const float* __restrict origin,
                             float* __restrict scratch, double* __restrict sums, double* __restrict squares) {
  float* __restrict sum = scratch;
  float* __restrict square = scratch + channels;
  for (int64_t begin = 0; begin < rows; begin += kRowsInFloat) {
    const int64_t end = std::min(begin + kRowsInFloat, rows);
    std::fill(scratch, scratch + 2 * channels, 0.0f);
    for (int64_t row = begin; row < end; ++row) {
      const float* __restrict values = x + row * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const float value = values[c] - origin[c];
        sum[c] += value;
        square[c] += value * value;
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      sums[c] += sum[c];
      squares[c] += square[c];
    }
  }
}

FNET_CLONES void normalize(const float* __restrict x, int64_t rows, const Channels& channels, bool rectify,
                           float* __restrict y) {
  const float* __restrict scale = channels.scale;
  const float* __restrict shift = channels.shift;
  const float least = rectify ? 0.0f : -__builtin_inff();
  for (int64_t row = 0; row < rows; ++row, x += channels.count, y += channels.count) {
    for (int64_t c = 0; c < channels.count; ++c) {
      const float value = x[c] * scale[c] + shift[c];
      y[c] = value < least ? least : value;
    }
  }
}

FNET_CLONES void add_gradients(const float* __restrict x, const float* __restrict grad, int64_t rows,
                               const Channels& channels, const float* __restrict mean, bool rectify,
                               float* __restrict scratch, double* __restrict sums, double* __restrict products) {
  const float* __restrict scale = channels.scale;
  const float* __restrict shift = channels.shift;
  const int64_t count = channels.count;
  const float least = rectify ? 0.0f : -__builtin_inff();
  float* __restrict sum = scratch;
  float* __restrict product = scratch + count;
  for (int64_t begin = 0; begin < rows; begin += kRowsInFloat) {
    const int64_t end = std::min(begin + kRowsInFloat, rows);
    std::fill(scratch, scratch + 2 * count, 0.0f);
    for (int64_t row = begin; row < end; ++row) {
      const float* __restrict values = x + row * count;
      const float* __restrict gradients = grad + row * count;
      for (int64_t c = 0; c < count; ++c) {
        const float g = values[c] * scale[c] + shift[c] > least ? gradients[c] : 0.0f;
        sum[c] += g;
        product[c] += g * (values[c] - mean[c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      sums[c] += sum[c];
      products[c] += product[c];
    }
  }
}

FNET_CLONES void gradient_of_input(const float* __restrict x, const float* __restrict grad, int64_t rows,
                                   const Channels& channels, const float* __restrict by_x,
                                   const float* __restrict constant, bool rectify, float* __restrict dx) {
  const float* __restrict scale = channels.scale;
  const float* __restrict shift = channels.shift;
  const int64_t count = channels.count;
  const float least = rectify ? 0.0f : -__builtin_inff();
  for (int64_t row = 0; row < rows; ++row, x += count, grad += count, dx += count) {
    for (int64_t c = 0; c < count; ++c) {
      const float g = x[c] * scale[c] + shift[c] > least ? grad[c] : 0.0f;
      dx[c] = scale[c] * g + by_x[c] * x[c] + constant[c];
    }
  }
}

}  // namespace fnet
