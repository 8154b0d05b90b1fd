// The arithmetic of RoIAlign on the CPU, free of libtorch.
#include "roi_align.h"

#include <algorithm>
#include <cmath>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FNET_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FNET_CLONES
#endif

namespace fnet {
namespace {

constexpr int64_t kLanes = 8;
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));

inline const Lanes& as_lanes(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline Lanes& as_lanes(float* from) { return *reinterpret_cast<Lanes*>(from); }

void add_weight(BinSpan& span, std::vector<float>& weights, int32_t pixel, float weight) {
  if (span.count == 0) span.first = pixel;
  while (span.first + span.count <= pixel) {
    weights.push_back(0.0f);
    ++span.count;
  }
  weights[span.offset + (pixel - span.first)] += weight;
}

}  // namespace

int64_t build_axis(float start, float end, float inverse_stride, int64_t bins, int64_t size, AxisTable& table) {
  const float from = start * inverse_stride - 0.5f;
  const float length = (end * inverse_stride - 0.5f) - from;
  const float bin = length / static_cast<float>(bins);
  const int64_t samples = std::max<int64_t>(static_cast<int64_t>(std::ceil(length / static_cast<float>(bins))), 0);
  table.spans.assign(bins, BinSpan{0, 0, 0});
  table.weights.clear();
  const auto last = static_cast<int32_t>(size - 1);
  for (int64_t b = 0; b < bins; ++b) {
    BinSpan& span = table.spans[b];
    span.offset = static_cast<int32_t>(table.weights.size());
    for (int64_t i = 0; i < samples; ++i) {
      float at = from + static_cast<float>(b) * bin +
                 (static_cast<float>(i) + 0.5f) * bin / static_cast<float>(samples);
      if (at < -1.0f || at > static_cast<float>(size)) continue;
      at = std::max(at, 0.0f);
      const auto low = static_cast<int32_t>(at);
      if (low >= last) {
        add_weight(span, table.weights, last, 1.0f);
        continue;
      }
      const float fraction = at - static_cast<float>(low);
      add_weight(span, table.weights, low, 1.0f - fraction);
      add_weight(span, table.weights, low + 1, fraction);
    }
  }
  return samples;
}

FNET_CLONES
void gather_bin(const float* image, int64_t row_stride, int64_t pixel_stride, const RoiTable& roi, const BinSpan& y,
                const BinSpan& x, int64_t channels, float* out) {
  const float* wy = roi.y.weights.data() + y.offset;
  const float* wx = roi.x.weights.data() + x.offset;
  const float* corner = image + y.first * row_stride + x.first * pixel_stride;
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    Lanes s0{}, s1{}, s2{}, s3{};
    for (int32_t i = 0; i < y.count; ++i) {
      const float* pixel = corner + i * row_stride + c;
      for (int32_t j = 0; j < x.count; ++j, pixel += pixel_stride) {
        const float w = wy[i] * wx[j];
        s0 += w * as_lanes(pixel);
        s1 += w * as_lanes(pixel + kLanes);
        s2 += w * as_lanes(pixel + 2 * kLanes);
        s3 += w * as_lanes(pixel + 3 * kLanes);
      }
    }
    as_lanes(out + c) = s0 * roi.scale;
    as_lanes(out + c + kLanes) = s1 * roi.scale;
    as_lanes(out + c + 2 * kLanes) = s2 * roi.scale;
    as_lanes(out + c + 3 * kLanes) = s3 * roi.scale;
  }
  for (; c < channels; ++c) {
    float sum = 0.0f;
    for (int32_t i = 0; i < y.count; ++i) {
      const float* pixel = corner + i * row_stride + c;
      for (int32_t j = 0; j < x.count; ++j, pixel += pixel_stride) sum += wy[i] * wx[j] * *pixel;
    }
    out[c] = sum * roi.scale;
  }
}

FNET_CLONES
void scatter_bin(float* image, int64_t row_stride, int64_t pixel_stride, const RoiTable& roi, const BinSpan& y,
                 const BinSpan& x, int64_t channels, const float* grad) {
  const float* wy = roi.y.weights.data() + y.offset;
  const float* wx = roi.x.weights.data() + x.offset;
  float* corner = image + y.first * row_stride + x.first * pixel_stride;
  for (int32_t i = 0; i < y.count; ++i) {
    float* pixel = corner + i * row_stride;
    for (int32_t j = 0; j < x.count; ++j, pixel += pixel_stride) {
      const float w = wy[i] * wx[j] * roi.scale;
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) as_lanes(pixel + c) += w * as_lanes(grad + c);
      for (; c < channels; ++c) pixel[c] += w * grad[c];
    }
  }
}

}  // namespace fnet
