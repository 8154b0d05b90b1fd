// Greedy non-maximum suppression on the CPU.
#include "bridge.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

// AVX2 without FMA: a fused multiply-add in the area or the union would change which pairs pass the threshold.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FNET_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FNET_CLONES
#endif

namespace fnet {
namespace {

// Boxes in the order of their scores, one array per coordinate.
struct Boxes {
  std::vector<float> x1, y1, x2, y2, area;
};

// Marks every box from `begin` to `end` whose intersection over union with box `i` is above `limit`.
FNET_CLONES
void suppress(const Boxes& boxes, int64_t i, int64_t begin, int64_t end, float limit, int32_t* suppressed) {
  const float *x1 = boxes.x1.data(), *y1 = boxes.y1.data(), *x2 = boxes.x2.data(), *y2 = boxes.y2.data();
  const float* area = boxes.area.data();
  const float ax1 = x1[i], ay1 = y1[i], ax2 = x2[i], ay2 = y2[i], a = area[i];
  for (int64_t j = begin; j < end; ++j) {
    const float left = ax1 < x1[j] ? x1[j] : ax1;
    const float top = ay1 < y1[j] ? y1[j] : ay1;
    const float right = x2[j] < ax2 ? x2[j] : ax2;
    const float bottom = y2[j] < ay2 ? y2[j] : ay2;
    const float w = right - left, h = bottom - top;
    const float intersection = (0.0f < w ? w : 0.0f) * (0.0f < h ? h : 0.0f);
    suppressed[j] |= intersection / (a + area[j] - intersection) > limit;
  }
}

// The largest float that is not above `threshold`: comparing a float with it equals comparing with the double.
float float_limit(double threshold) {
  auto limit = static_cast<float>(threshold);
  if (static_cast<double>(limit) > threshold) limit = std::nextafter(limit, -std::numeric_limits<float>::infinity());
  return limit;
}

// The places of the boxes, best first; equal scores keep their order, and what is no number comes first, as libtorch sorts.
std::vector<int64_t> by_score(const float* scores, int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    const float a = scores[i], b = scores[j];
    return std::isnan(a) ? !std::isnan(b) : a > b;
  });
  return order;
}

// The places of the boxes that are kept, best first.
std::vector<int64_t> nms(const float* boxes, const float* scores, int64_t count, double iou_threshold) {
  const std::vector<int64_t> rank = by_score(scores, count);
  Boxes sorted;
  for (auto* array : {&sorted.x1, &sorted.y1, &sorted.x2, &sorted.y2, &sorted.area}) array->resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const float* box = boxes + 4 * rank[i];
    sorted.x1[i] = box[0];
    sorted.y1[i] = box[1];
    sorted.x2[i] = box[2];
    sorted.y2[i] = box[3];
    sorted.area[i] = (box[2] - box[0]) * (box[3] - box[1]);
  }
  const float limit = float_limit(iou_threshold);
  std::vector<int32_t> suppressed(count, 0);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < count; ++i) {
    if (suppressed[i]) continue;
    kept.push_back(rank[i]);
    suppress(sorted, i, i + 1, count, limit, suppressed.data());
  }
  return kept;
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  if (boxes.dim() != 2 || boxes.size(1) != 4 || scores.dim() != 1 || scores.size(0) != boxes.size(0)) {
    throw InvalidArgument("NMS: expected boxes [n, 4] and scores [n]");
  }
  if (!boxes.is_cpu() || !scores.is_cpu()) throw InvalidArgument("NMS: expected boxes and scores on the CPU");
  const at::Tensor b = boxes.detach().to(at::kFloat).contiguous();
  const at::Tensor s = scores.detach().to(at::kFloat).contiguous();
  const std::vector<int64_t> kept = nms(b.const_data_ptr<float>(), s.const_data_ptr<float>(), b.size(0), iou_threshold);
  at::Tensor result = at::empty({static_cast<int64_t>(kept.size())}, at::kLong);
  std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

}  // namespace
}  // namespace fnet

extern "C" FnetError* fnet_nms(TensorPtr boxes, TensorPtr scores, double iou_threshold, TensorPtr* out) {
  return fnet::guarded([&] { *out = new at::Tensor(fnet::nms(*boxes, *scores, iou_threshold)); });
}

// `boxes`: 4 * `count` values. Writes the places of the kept boxes to `kept`, which has room for `count`, best first, and
// their number to `kept_count`.
extern "C" FnetError* fnet_nms_of_values(const float* boxes, const float* scores, size_t count, double iou_threshold,
                                         int64_t* kept, size_t* kept_count) {
  return fnet::guarded([&] {
    const auto places = fnet::nms(boxes, scores, static_cast<int64_t>(count), iou_threshold);
    std::copy(places.begin(), places.end(), kept);
    *kept_count = places.size();
  });
}
