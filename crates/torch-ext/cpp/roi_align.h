// RoIAlign over all levels of a feature pyramid: tables of weights and the two kernels that use them.
#pragma once

#include <cstdint>
#include <vector>

namespace fnet {

// The pixels of one axis that the samples of one output bin touch, with the sum of their interpolation weights.
// Bilinear interpolation is separable, so a bin's value is sum_y sum_x wy[y] * wx[x] * pixel[y][x].
struct BinSpan {
  int32_t first;   // first pixel
  int32_t count;   // number of pixels; 0 when every sample lies outside
  int32_t offset;  // place of the first weight in AxisTable::weights
};

// Spans of all bins of one RoI along one axis.
struct AxisTable {
  std::vector<BinSpan> spans;
  std::vector<float> weights;
};

// One RoI, ready for the kernels.
struct RoiTable {
  int64_t image;
  int64_t level;
  float scale;  // 1 / number of samples per bin
  AxisTable y, x;
};

// The rule of RoIAlign with aligned = true and an adaptive number of samples: bins of size (end - start) / bins,
// ceil(bin size) samples each, coordinates shifted by half a pixel, samples outside [-1, size] are zero.
// `start` and `end` are in image pixels, `inverse_stride` maps them to the level. Returns the samples per bin.
int64_t build_axis(float start, float end, float inverse_stride, int64_t bins, int64_t size, AxisTable& table);

// out[c] = scale * sum over the bin's pixels, for `channels` channels that lie side by side.
void gather_bin(const float* image, int64_t row_stride, int64_t pixel_stride, const RoiTable& roi, const BinSpan& y,
                const BinSpan& x, int64_t channels, float* out);

// The transpose of gather_bin: adds scale * weight * grad[c] to every pixel of the bin.
void scatter_bin(float* image, int64_t row_stride, int64_t pixel_stride, const RoiTable& roi, const BinSpan& y,
                 const BinSpan& x, int64_t channels, const float* grad);

}  // namespace fnet
