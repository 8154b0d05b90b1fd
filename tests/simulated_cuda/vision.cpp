// torchvision's operators, as its library would register them, with kernels for the CPU. torchvision/_C.so is empty.
#include "sim.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace sim {
namespace {

// The four pixels around a point and their weights.
struct Corners {
  int64_t at[4];
  float weight[4];
};

// False for a point beyond the image.
bool corners(float y, float x, int64_t height, int64_t width, Corners& out) {
  // Not a number counts as beyond.
  if (!(y >= -1.0f && y <= static_cast<float>(height) && x >= -1.0f && x <= static_cast<float>(width))) return false;
  y = std::max(y, 0.0f);
  x = std::max(x, 0.0f);
  const auto clip = [](float& v, int64_t size, int64_t& low, int64_t& high) {
    low = static_cast<int64_t>(v);
    if (low >= size - 1) {
      low = high = size - 1;
      v = static_cast<float>(low);
    } else {
      high = low + 1;
    }
  };
  int64_t top, bottom, left, right;
  clip(y, height, top, bottom);
  clip(x, width, left, right);
  const float down = y - static_cast<float>(top), across = x - static_cast<float>(left);
  out = {{top * width + left, top * width + right, bottom * width + left, bottom * width + right},
         {(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across}};
  return true;
}

struct Grid {
  double scale;
  int64_t rows, columns, samples;
  bool aligned;
};

// Calls body(image, bin, corners, weight) for every sample of every RoI.
template <class Body>
void each_sample(const Tensor& rois, const Grid& grid, int64_t height, int64_t width, const Body& body) {
  const Tensor boxes = rois.contiguous();
  const float* box = boxes.const_data_ptr<float>();
  const auto scale = static_cast<float>(grid.scale);
  const float shift = grid.aligned ? 0.5f : 0.0f;
  for (int64_t k = 0; k < boxes.size(0); ++k, box += 5) {
    const auto image = static_cast<int64_t>(box[0]);
    const float x1 = box[1] * scale - shift, y1 = box[2] * scale - shift;
    float w = box[3] * scale - shift - x1, h = box[4] * scale - shift - y1;
    if (!grid.aligned) {
      w = std::max(w, 1.0f);
      h = std::max(h, 1.0f);
    }
    const float bin_h = h / static_cast<float>(grid.rows), bin_w = w / static_cast<float>(grid.columns);
    const auto samples = [&](float bin) {
      return grid.samples > 0 ? grid.samples : bin > 0.0f && bin < 1e6f ? static_cast<int64_t>(std::ceil(bin)) : int64_t{0};
    };
    const int64_t down = samples(bin_h), across = samples(bin_w);
    const float weight = 1.0f / static_cast<float>(std::max<int64_t>(down * across, 1));
    Corners c;
    for (int64_t bin = 0; bin < grid.rows * grid.columns; ++bin) {
      const int64_t i = bin / grid.columns, j = bin % grid.columns;
      for (int64_t a = 0; a < down; ++a) {
        const float y = y1 + static_cast<float>(i) * bin_h + (static_cast<float>(a) + 0.5f) * bin_h / static_cast<float>(down);
        for (int64_t b = 0; b < across; ++b) {
          const float x = x1 + static_cast<float>(j) * bin_w + (static_cast<float>(b) + 0.5f) * bin_w / static_cast<float>(across);
          if (corners(y, x, height, width, c)) body(image, k * grid.rows * grid.columns + bin, c, weight);
        }
      }
    }
  }
}

// to[i] += w * from[i]
void add_scaled(float* to, const float* from, float w, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += w * from[i];
}

Tensor roi_align(const Tensor& input, const Tensor& rois, double scale, c10::SymInt rows, c10::SymInt columns, int64_t samples, bool aligned) {
  TORCH_CHECK(input.scalar_type() == at::kFloat && rois.scalar_type() == at::kFloat, "roi_align: expected float32");
  const Grid grid{scale, rows.expect_int(), columns.expect_int(), samples, aligned};
  const int64_t channels = input.size(1), area = input.size(2) * input.size(3);
  const Tensor pixels = input.permute({0, 2, 3, 1}).contiguous();
  Tensor bins = at::zeros({rois.size(0), grid.rows, grid.columns, channels}, input.options());
  each_sample(rois, grid, input.size(2), input.size(3), [&](int64_t image, int64_t bin, const Corners& c, float weight) {
    for (int q = 0; q < 4; ++q) {
      add_scaled(bins.mutable_data_ptr<float>() + bin * channels, pixels.const_data_ptr<float>() + (image * area + c.at[q]) * channels,
                 c.weight[q] * weight, channels);
    }
  });
  // As CUDA's kernel gives it, whatever the layout of the input.
  return bins.permute({0, 3, 1, 2}).contiguous();
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& rois, double scale, c10::SymInt rows, c10::SymInt columns, c10::SymInt images,
                          c10::SymInt depth, c10::SymInt height, c10::SymInt width, int64_t samples, bool aligned) {
  const Grid grid{scale, rows.expect_int(), columns.expect_int(), samples, aligned};
  const int64_t channels = depth.expect_int(), h = height.expect_int(), w = width.expect_int();
  const Tensor bins = grad.permute({0, 2, 3, 1}).contiguous();
  Tensor pixels = at::zeros({images.expect_int(), h, w, channels}, grad.options());
  each_sample(rois, grid, h, w, [&](int64_t image, int64_t bin, const Corners& c, float weight) {
    for (int q = 0; q < 4; ++q) {
      add_scaled(pixels.mutable_data_ptr<float>() + (image * h * w + c.at[q]) * channels, bins.const_data_ptr<float>() + bin * channels,
                 c.weight[q] * weight, channels);
    }
  });
  return pixels.permute({0, 3, 1, 2}).contiguous();
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double threshold) {
  const Tensor order = std::get<1>(at::sort(scores, /*stable=*/true, 0, /*descending=*/true)).contiguous();
  const Tensor rows = boxes.index_select(0, order).contiguous();
  const float* box = rows.const_data_ptr<float>();
  const int64_t count = rows.size(0);
  std::vector<char> dropped(static_cast<size_t>(count));
  std::vector<int64_t> kept;
  const auto area = [](const float* b) { return (b[2] - b[0]) * (b[3] - b[1]); };
  for (int64_t i = 0; i < count; ++i) {
    if (dropped[static_cast<size_t>(i)]) continue;
    kept.push_back(order.const_data_ptr<int64_t>()[i]);
    const float* a = box + 4 * i;
    for (int64_t j = i + 1; j < count; ++j) {
      const float* b = box + 4 * j;
      const float w = std::max(std::min(a[2], b[2]) - std::max(a[0], b[0]), 0.0f), h = std::max(std::min(a[3], b[3]) - std::max(a[1], b[1]), 0.0f);
      if (w * h / (area(a) + area(b) - w * h) > threshold) dropped[static_cast<size_t>(j)] = 1;
    }
  }
  return at::tensor(kept, order.options());
}

using Align = Tensor(const Tensor&, const Tensor&, double, c10::SymInt, c10::SymInt, int64_t, bool);
using AlignBackward = decltype(roi_align_backward);

template <class Signature>
auto typed(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct AlignFunction : torch::autograd::Function<AlignFunction> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& input, const Tensor& rois, double scale, c10::SymInt rows,
                        c10::SymInt columns, int64_t samples, bool aligned) {
    context->save_for_backward({rois});
    context->saved_data["numbers"] = std::vector<int64_t>{rows.expect_int(), columns.expect_int(), input.size(0), input.size(1), input.size(2), input.size(3), samples, aligned};
    context->saved_data["scale"] = scale;
    const at::AutoDispatchBelowADInplaceOrView below;
    return typed<Align>("torchvision::roi_align").call(input, rois, scale, rows, columns, samples, aligned);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list grads) {
    const auto n = context->saved_data["numbers"].toIntVector();
    Tensor grad = typed<AlignBackward>("torchvision::_roi_align_backward")
                      .call(grads[0], context->get_saved_variables()[0], context->saved_data["scale"].toDouble(), n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7] != 0);
    return {grad, {}, {}, {}, {}, {}, {}};
  }
};

Tensor roi_align_autograd(const Tensor& input, const Tensor& rois, double scale, c10::SymInt rows, c10::SymInt columns, int64_t samples, bool aligned) {
  return AlignFunction::apply(input, rois, scale, rows, columns, samples, aligned);
}

TORCH_LIBRARY(torchvision, m) {
  m.def("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor");
  m.def("roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor");
  m.def("_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchvision, CPU, m) {
  m.impl("nms", nms);
  m.impl("roi_align", roi_align);
  m.impl("_roi_align_backward", roi_align_backward);
}
TORCH_LIBRARY_IMPL(torchvision, Autograd, m) { m.impl("roi_align", roi_align_autograd); }

}  // namespace
}  // namespace sim
