// Batch normalization by the batch's own statistics, with an optional rectifier, on rows of channels.
#pragma once

#include <cstdint>

namespace fnet {

// What the forward pass multiplies and adds per channel, and what the backward pass needs of it.
struct Channels {
  int64_t count;
  const float* scale;  // weight / standard deviation
  const float* shift;  // bias - mean * scale
};

// Adds the sums of (x - origin) and of its square over `rows` rows to `sums` and `squares`.
void add_moments(const float* x, int64_t rows, int64_t channels, const float* origin, float* scratch, double* sums,
                 double* squares);

// y = x * scale + shift, cut at zero if `rectify`.
void normalize(const float* x, int64_t rows, const Channels& channels, bool rectify, float* y);

// Adds the sums of the gradient g and of g * (x - mean) to `sums` and `products`; g is 0 where the rectifier cut.
void add_gradients(const float* x, const float* grad, int64_t rows, const Channels& channels, const float* mean,
                   bool rectify, float* scratch, double* sums, double* products);

// dx = scale * g + by_x * x + constant.
void gradient_of_input(const float* x, const float* grad, int64_t rows, const Channels& channels, const float* by_x,
                       const float* constant, bool rectify, float* dx);

}  // namespace fnet
