// RoIAlign over all levels of a feature pyramid, with its gradient.
#include "roi_align.h"

#include "bridge.h"
#include "torchvision.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <numeric>

namespace fnet {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Channels that one task of the backward kernel owns: four vectors of eight floats.
constexpr int64_t kChannelBlock = 32;
// A side beyond this is no box that a detector proposes; it would mean millions of samples.
constexpr float kLargestSide = 1e6f;

struct Shape {
  int64_t images, channels, bins;
  std::vector<int64_t> heights, widths;
};

using Rois = std::vector<RoiTable>;

Rois build_tables(const at::Tensor& rois, const at::Tensor& roi_levels, const std::vector<double>& strides,
                  const Shape& shape) {
  const int64_t count = rois.size(0);
  const float* boxes = rois.const_data_ptr<float>();
  const int64_t* levels = roi_levels.const_data_ptr<int64_t>();
  Rois tables(count);
  at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const float* box = boxes + 5 * k;
      RoiTable& table = tables[k];
      table.image = static_cast<int64_t>(box[0]);
      table.level = levels[k];
      const auto inverse = static_cast<float>(1.0 / strides[table.level]);
      const int64_t ny = build_axis(box[2], box[4], inverse, shape.bins, shape.heights[table.level], table.y);
      const int64_t nx = build_axis(box[1], box[3], inverse, shape.bins, shape.widths[table.level], table.x);
      table.scale = 1.0f / static_cast<float>(std::max<int64_t>(ny * nx, 1));
    }
  });
  return tables;
}

void check_rois(const at::Tensor& rois, const at::Tensor& roi_levels, int64_t images, size_t level_count) {
  const float* box = rois.const_data_ptr<float>();
  const int64_t* level = roi_levels.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < rois.size(0); ++k, box += 5) {
    const std::string where = "RoI " + std::to_string(k);
    if (!(box[0] >= 0 && box[0] < static_cast<float>(images))) {
      throw InvalidArgument(where + " names image " + std::to_string(box[0]) + " of " + std::to_string(images));
    }
    if (level[k] < 0 || level[k] >= static_cast<int64_t>(level_count)) {
      throw InvalidArgument(where + " names level " + std::to_string(level[k]) + " of " + std::to_string(level_count));
    }
    for (int i = 1; i < 5; ++i) {
      if (!(std::abs(box[i]) <= kLargestSide)) {
        throw InvalidArgument(where + " has the coordinate " + std::to_string(box[i]) +
                              "; expected finite values within 1e6 pixels (has the training diverged?)");
      }
    }
  }
}

// A float32 copy or view with the channels side by side.
at::Tensor channels_side_by_side(const at::Tensor& tensor) {
  return tensor.to(at::kFloat).contiguous(at::MemoryFormat::ChannelsLast);
}

Shape shape_of(at::TensorList levels, int64_t bins) {
  Shape shape{levels[0].size(0), levels[0].size(1), bins, {}, {}};
  for (const at::Tensor& level : levels) {
    shape.heights.push_back(level.size(2));
    shape.widths.push_back(level.size(3));
  }
  return shape;
}

at::Tensor forward_cpu(at::TensorList levels, const Rois& rois, const Shape& shape) {
  const auto count = static_cast<int64_t>(rois.size());
  at::Tensor output = at::empty({count, shape.channels, shape.bins, shape.bins}, levels[0].options().dtype(at::kFloat),
                                at::MemoryFormat::ChannelsLast);
  std::vector<at::Tensor> inputs;
  for (const at::Tensor& level : levels) inputs.push_back(channels_side_by_side(level));
  auto* out = output.mutable_data_ptr<float>();
  const int64_t bins = shape.bins, channels = shape.channels;
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const RoiTable& roi = rois[k];
      const int64_t row = shape.widths[roi.level] * channels;
      const float* image = inputs[roi.level].const_data_ptr<float>() + roi.image * shape.heights[roi.level] * row;
      float* to = out + k * bins * bins * channels;
      for (const BinSpan& y : roi.y.spans) {
        for (const BinSpan& x : roi.x.spans) {
          gather_bin(image, row, channels, roi, y, x, channels, to);
          to += channels;
        }
      }
    }
  });
  return output;
}

// Every task owns a block of channels of one image and adds the RoIs in their order, so the gradient does not depend
// on the number of threads.
std::vector<at::Tensor> backward_cpu(const at::Tensor& grad_output, const Rois& rois, const Shape& shape) {
  const at::Tensor grad = channels_side_by_side(grad_output);
  std::vector<at::Tensor> grads;
  std::vector<float*> planes;
  for (size_t i = 0; i < shape.heights.size(); ++i) {
    grads.push_back(at::empty({shape.images, shape.channels, shape.heights[i], shape.widths[i]},
                              grad.options(), at::MemoryFormat::ChannelsLast).zero_());
    planes.push_back(grads.back().mutable_data_ptr<float>());
  }
  std::vector<std::vector<int64_t>> by_image(shape.images);
  for (size_t k = 0; k < rois.size(); ++k) by_image[rois[k].image].push_back(static_cast<int64_t>(k));

  const float* from = grad.const_data_ptr<float>();
  const int64_t bins = shape.bins, channels = shape.channels;
  const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  at::parallel_for(0, shape.images * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks;
      const int64_t channel = task % blocks * kChannelBlock;
      const int64_t width = std::min(kChannelBlock, channels - channel);
      for (int64_t k : by_image[image]) {
        const RoiTable& roi = rois[k];
        const int64_t row = shape.widths[roi.level] * channels;
        float* plane = planes[roi.level] + image * shape.heights[roi.level] * row + channel;
        const float* g = from + k * bins * bins * channels + channel;
        for (const BinSpan& y : roi.y.spans) {
          for (const BinSpan& x : roi.x.spans) {
            scatter_bin(plane, row, channels, roi, y, x, width, g);
            g += channels;
          }
        }
      }
    }
  });
  return grads;
}

class RoiAlign : public torch::autograd::Function<RoiAlign> {
 public:
  static at::Tensor forward(AutogradContext* context, at::TensorList levels, const at::Tensor& rois,
                            const at::Tensor& roi_levels, const std::vector<double>& strides, int64_t bins) {
    const Shape shape = shape_of(levels, bins);
    context->save_for_backward({rois, roi_levels});
    context->saved_data["images"] = shape.images;
    context->saved_data["channels"] = shape.channels;
    context->saved_data["bins"] = bins;
    context->saved_data["heights"] = shape.heights;
    context->saved_data["widths"] = shape.widths;
    context->saved_data["strides"] = strides;
    return forward_cpu(levels, build_tables(rois, roi_levels, strides, shape), shape);
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    auto& data = context->saved_data;
    const Shape shape{data["images"].toInt(), data["channels"].toInt(), data["bins"].toInt(),
                      data["heights"].toIntVector(), data["widths"].toIntVector()};
    const variable_list saved = context->get_saved_variables();
    const Rois rois = build_tables(saved[0], saved[1], data["strides"].toDoubleVector(), shape);
    variable_list grads = backward_cpu(grad_outputs[0], rois, shape);
    grads.resize(grads.size() + 4);  // rois, roi_levels, strides and bins have no gradient
    return grads;
  }
};

void check_arguments(const std::vector<at::Tensor>& levels, const std::vector<double>& strides, int64_t bins) {
  if (levels.empty() || levels.size() != strides.size() || bins < 1) {
    throw InvalidArgument("RoIAlign: " + std::to_string(levels.size()) + " levels, " + std::to_string(strides.size()) +
                          " strides, output size " + std::to_string(bins) +
                          "; expected at least one level, as many strides, and a size of at least 1");
  }
  for (size_t i = 0; i < levels.size(); ++i) {
    const at::Tensor& level = levels[i];
    if (level.dim() != 4 || level.size(0) != levels[0].size(0) || level.size(1) != levels[0].size(1) ||
        level.device() != levels[0].device() || !level.is_floating_point() || level.size(2) < 1 || level.size(3) < 1) {
      throw InvalidArgument("RoIAlign: level " + std::to_string(i) +
                            " is no floating-point tensor [images, channels, height, width] like level 0");
    }
  }
}

at::Tensor roi_align(const std::vector<at::Tensor>& levels, const at::Tensor& rois, const at::Tensor& roi_levels,
                     const std::vector<double>& strides, int64_t bins) {
  check_arguments(levels, strides, bins);
  if (rois.dim() != 2 || rois.size(1) != 5 || roi_levels.dim() != 1 || roi_levels.size(0) != rois.size(0)) {
    throw InvalidArgument("RoIAlign: expected rois [K, 5] and one level for each of them");
  }
  if (!levels[0].is_cpu()) throw InvalidArgument("RoIAlign: expected levels on the CPU");
  const at::Tensor boxes = rois.detach().to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor indices = roi_levels.detach().to(at::kCPU, at::kLong).contiguous();
  check_rois(boxes, indices, levels[0].size(0), levels.size());
  at::TensorList inputs(levels);
  const at::ScalarType kind = levels[0].scalar_type();
  return RoiAlign::apply(inputs, boxes, indices, strides, bins).to(kind);
}

at::Tensor roi_align_by_level(const std::vector<at::Tensor>& levels, const RoisByLevel& by_level,
                              const std::vector<double>& strides, int64_t bins) {
  check_arguments(levels, strides, bins);
  const int64_t count = std::accumulate(by_level.counts.begin(), by_level.counts.end(), int64_t{0});
  const at::Tensor& rois = by_level.rois;
  if (by_level.counts.size() != levels.size() || rois.dim() != 2 || rois.size(1) != 5 || rois.size(0) != count ||
      by_level.order.has_value() != by_level.back.has_value() ||
      (by_level.order && (by_level.order->numel() != count || by_level.back->numel() != count))) {
    throw InvalidArgument("RoIAlign: expected rois [K, 5], the order of each, and how many of them each level has");
  }
  return roi_align_torchvision(levels, by_level, strides, bins);
}

}  // namespace
}  // namespace fnet

extern "C" FnetError* fnet_roi_align(const TensorPtr* levels, size_t level_count, TensorPtr rois, TensorPtr roi_levels,
                                     const double* strides, size_t stride_count, int64_t bins, TensorPtr* out) {
  return fnet::guarded([&] {
    *out = new at::Tensor(fnet::roi_align(fnet::to_vector(levels, level_count), *rois, *roi_levels,
                                          std::vector<double>(strides, strides + stride_count), bins));
  });
}

// See fnet::RoisByLevel; `counts` has a number for each level, `order` and `back` may be null.
extern "C" FnetError* fnet_roi_align_by_level(const TensorPtr* levels, size_t level_count, TensorPtr rois,
                                              TensorPtr order, TensorPtr back, const int64_t* counts,
                                              const double* strides, size_t stride_count, int64_t bins, TensorPtr* out) {
  return fnet::guarded([&] {
    const auto optional = [](TensorPtr tensor) { return tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(*tensor); };
    const fnet::RoisByLevel by_level{*rois, optional(order), optional(back), std::vector<int64_t>(counts, counts + level_count)};
    *out = new at::Tensor(fnet::roi_align_by_level(fnet::to_vector(levels, level_count), by_level,
                                                   std::vector<double>(strides, strides + stride_count), bins));
  });
}
