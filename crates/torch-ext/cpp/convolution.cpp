// Gradients of convolutions' weights on the CPU.
//
// Of large images, one strip of rows at a time:
// oneDNN goes over the whole image once for each block of channels. A strip stays in the caches meanwhile; an image of
// 200x336 pixels with 256 channels does not, and takes a tenth longer with AVX-512, five times as long without. Without
// AVX-512 oneDNN has no kernel of its own for channels_last order: it reads eight channels of each pixel, far apart from the
// next pixel's eight. There a strip is copied to contiguous order first.
//
// Where windows do not overlap (1x1, and 2x2 in steps of 2), as one matrix product. oneDNN takes up to four times as long for
// windows of several pixels, and without AVX-512 up to 1.5 times as long for single pixels with many channels.
#include "bridge.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/convolution_backward_compositeexplicitautograd_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>
#include <tuple>

namespace fnet {
namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Bytes of one strip with each value once for each weight that it meets.
constexpr int64_t kStripBytes = int64_t{16} << 20;

// Weights of a kernel of one pixel from which on the matrix product is quicker.
constexpr int64_t kManyWeights = int64_t{1} << 19;

// Whether oneDNN has no AVX-512 kernels here. The user's ONEDNN_MAX_CPU_ISA limits them.
bool is_narrow() {
#ifdef __x86_64__
  static const bool narrow = [] {
    const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
    const std::string_view isa = limit == nullptr ? "" : limit;
    return !__builtin_cpu_supports("avx512f") || isa == "SSE41" || isa == "AVX" || isa.substr(0, 4) == "AVX2";
  }();
  return narrow;
#else
  return false;
#endif
}

// The order in which oneDNN is given a strip.
at::MemoryFormat strip_format() { return is_narrow() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast; }

// A two-dimensional convolution and what its backward pass has been given.
struct Convolution {
  const at::Tensor& grad;
  const at::Tensor& input;
  const at::Tensor& weight;
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;

  // libtorch's own gradients.
  Gradients gradients(const at::Tensor& grads, const at::Tensor& inputs, const at::Tensor& weights,
                      std::array<int64_t, 2> pads, std::array<bool, 3> wanted) const {
    return at::compositeexplicitautograd::convolution_backward(grads, inputs, weights, at::OptionalIntArrayRef{}, stride, pads,
                                                               dilation, false, {0, 0}, groups, wanted);
  }

  // Rows of output of a strip; 0 where one strip holds the whole image, or a window is one pixel.
  int64_t rows_of_strip() const {
    if (weight.size(2) * weight.size(3) == 1) return 0;
    const int64_t row = grad.size(3) * weight.size(1) * groups * weight.size(2) * weight.size(3) * int64_t{sizeof(float)};
    const int64_t rows = std::max<int64_t>(kStripBytes / std::max<int64_t>(row, 1), 1);
    return rows < grad.size(2) ? rows : 0;
  }

  // What `count` rows of output of one image, from row `first` on, add to the weight's gradient.
  at::Tensor of_strip(int64_t image, int64_t first, int64_t count, const at::Tensor& ordered_weight) const {
    const int64_t top = first * stride[0] - padding[0];
    const int64_t bottom = (first + count - 1) * stride[0] - padding[0] + (weight.size(2) - 1) * dilation[0] + 1;
    const int64_t begin = std::max<int64_t>(top, 0), end = std::min(bottom, input.size(2));
    at::Tensor rows = input.narrow(0, image, 1).narrow(2, begin, end - begin);
    if (begin > top || end < bottom) rows = at::constant_pad_nd(rows, {0, 0, begin - top, bottom - end});
    const at::Tensor grads = grad.narrow(0, image, 1).narrow(2, first, count);
    return std::get<1>(gradients(grads.contiguous(strip_format()), rows.contiguous(strip_format()), ordered_weight,
                                 {0, padding[1]}, {false, true, false}));
  }

  // Whether the windows lie side by side, without padding.
  bool has_separate_windows() const {
    const auto all = [](at::IntArrayRef values, int64_t wanted) {
      return std::all_of(values.begin(), values.end(), [=](int64_t value) { return value == wanted; });
    };
    return groups == 1 && all(padding, 0) && all(dilation, 1) && stride[0] == weight.size(2) && stride[1] == weight.size(3);
  }

  bool is_product() const {
    const bool has_one_pixel = weight.size(2) * weight.size(3) == 1;
    return has_separate_windows() && (!has_one_pixel || (is_narrow() && weight.numel() >= kManyWeights));
  }

  // The weight's gradient as the product of the output's gradients with the windows, a row of values each.
  at::Tensor product() const {
    const int64_t images = grad.size(0), height = grad.size(2), width = grad.size(3), channels = input.size(1);
    const int64_t rows = weight.size(2), columns = weight.size(3);
    const at::Tensor used = input.narrow(2, 0, height * rows).narrow(3, 0, width * columns).permute({0, 2, 3, 1});
    const at::Tensor windows = used.unflatten(2, {width, columns}).unflatten(1, {height, rows}).permute({0, 1, 3, 2, 4, 5});
    // Not through the dispatcher, so that a profile counts it here.
    const at::Tensor sum = at::cpu::mm(grad.permute({0, 2, 3, 1}).reshape({images * height * width, -1}).t(),
                                       windows.reshape({images * height * width, -1}));
    return sum.view({-1, rows, columns, channels}).permute({0, 3, 1, 2}).contiguous(weight.suggest_memory_format());
  }

  at::Tensor sum_of_strips(int64_t rows) const {
    const at::Tensor ordered_weight = weight.contiguous(strip_format());
    at::Tensor sum;
    for (int64_t image = 0; image < grad.size(0); ++image) {
      for (int64_t first = 0; first < grad.size(2); first += rows) {
        const at::Tensor part = of_strip(image, first, std::min(rows, grad.size(2) - first), ordered_weight);
        sum = sum.defined() ? sum.add_(part) : part;
      }
    }
    return sum.contiguous(weight.suggest_memory_format());
  }
};

// True for two-dimensional convolutions in float32 and channels_last order.
bool is_channels_last(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight, bool transposed) {
  return !transposed && input.dim() == 4 && weight.dim() == 4 && grad.numel() > 0 &&
         input.scalar_type() == at::kFloat && grad.scalar_type() == at::kFloat &&
         input.is_contiguous(at::MemoryFormat::ChannelsLast) && !input.is_contiguous();
}

Gradients convolution_backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                               at::OptionalIntArrayRef bias_sizes, at::IntArrayRef stride, at::IntArrayRef padding,
                               at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
                               std::array<bool, 3> wanted) {
  if (wanted[1] && is_channels_last(grad, input, weight, transposed)) {
    const at::Tensor dense = grad.contiguous(at::MemoryFormat::ChannelsLast);
    const Convolution convolution{dense, input, weight, stride, padding, dilation, groups};
    const int64_t rows = convolution.rows_of_strip();
    if (rows > 0 || convolution.is_product()) {
      Gradients result;
      if (wanted[0]) result = convolution.gradients(dense, input, weight, {padding[0], padding[1]}, {true, false, false});
      std::get<1>(result) = rows > 0 ? convolution.sum_of_strips(rows) : convolution.product();
      if (wanted[2]) std::get<2>(result) = dense.sum({0, 2, 3});
      return result;
    }
  }
  return at::compositeexplicitautograd::convolution_backward(grad, input, weight, bias_sizes, stride, padding, dilation,
                                                             transposed, output_padding, groups, wanted);
}

}  // namespace
}  // namespace fnet

TORCH_LIBRARY_IMPL(aten, CPU, library) { library.impl("convolution_backward", fnet::convolution_backward); }
