// Batch normalization in training on the CPU, for float32 in channels_last order, with an optional rectifier.
//
// libtorch's own kernel adds a channel's values one after the other in float32 when they lie in channels_last order,
// which costs a digit and a half; and it leaves the rectifier to passes of their own.
#include "batch_norm.h"

#include "bridge.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace fnet {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Values of one task.
constexpr int64_t kTaskValues = 1 << 15;

// Rows are split into tasks by the shape alone, and their sums are added in order: results do not depend on the
// number of threads.
struct Tasks {
  int64_t rows, channels, rows_per_task, count;

  explicit Tasks(const at::Tensor& x)
      : rows(x.size(0) * x.size(2) * x.size(3)), channels(x.size(1)) {
    rows_per_task = std::max<int64_t>(kTaskValues / std::max<int64_t>(channels, 1), 16);
    count = (rows + rows_per_task - 1) / rows_per_task;
  }

  // Calls body(task, first row, number of rows).
  template <class Body>
  void run(const Body& body) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * rows_per_task;
        body(task, first, std::min(rows_per_task, rows - first));
      }
    });
  }

  // Two sums per channel: body(first row, rows, scratch, sums, other sums) adds a task's share.
  template <class Body>
  std::vector<double> reduce(const Body& body) const {
    std::vector<double> partial(count * 2 * channels, 0.0);
    run([&](int64_t task, int64_t first, int64_t task_rows) {
      std::vector<float> scratch(2 * channels);
      double* sums = partial.data() + task * 2 * channels;
      body(first, task_rows, scratch.data(), sums, sums + channels);
    });
    std::vector<double> total(2 * channels, 0.0);
    for (int64_t task = 0; task < count; ++task) {
      for (int64_t c = 0; c < 2 * channels; ++c) total[c] += partial[task * 2 * channels + c];
    }
    return total;
  }
};

struct Running {
  float* mean;
  float* variance;
  double momentum;
};

// Scale and shift of every channel; `mean` and `deviation` (its inverse) are what the backward pass needs.
struct Coefficients {
  std::vector<float> scale, shift;

  Coefficients(const at::Tensor& weight, const at::Tensor& bias, const float* mean, const float* inverse_deviation) {
    const auto* w = weight.const_data_ptr<float>();
    const auto* b = bias.const_data_ptr<float>();
    for (int64_t c = 0; c < weight.numel(); ++c) {
      scale.push_back(w[c] * inverse_deviation[c]);
      shift.push_back(static_cast<float>(b[c] - static_cast<double>(mean[c]) * scale.back()));
    }
  }

  Channels view() const { return {static_cast<int64_t>(scale.size()), scale.data(), shift.data()}; }
};

// Mean and inverse standard deviation of every channel; the running statistics follow them.
void statistics(const at::Tensor& x, const Tasks& tasks, double epsilon, const Running& running, float* mean,
                float* inverse_deviation) {
  const auto* values = x.const_data_ptr<float>();
  // Around the first row, so that the variance does not cancel where the mean is large.
  const std::vector<float> origin(values, values + tasks.channels);
  const std::vector<double> sums = tasks.reduce([&](int64_t first, int64_t rows, float* scratch, double* sum, double* square) {
    add_moments(values + first * tasks.channels, rows, tasks.channels, origin.data(), scratch, sum, square);
  });
  const auto count = static_cast<double>(tasks.rows);
  for (int64_t c = 0; c < tasks.channels; ++c) {
    const double offset = sums[c] / count;
    const double variance = std::max(sums[tasks.channels + c] / count - offset * offset, 0.0);
    const double centre = origin[c] + offset;
    mean[c] = static_cast<float>(centre);
    inverse_deviation[c] = static_cast<float>(1.0 / std::sqrt(variance + epsilon));
    const double unbiased = variance * count / std::max(count - 1.0, 1.0);
    running.mean[c] = static_cast<float>((1.0 - running.momentum) * running.mean[c] + running.momentum * centre);
    running.variance[c] = static_cast<float>((1.0 - running.momentum) * running.variance[c] + running.momentum * unbiased);
  }
}

class BatchNorm : public torch::autograd::Function<BatchNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& bias, at::Tensor running_mean, at::Tensor running_variance,
                            double momentum, double epsilon, bool rectify) {
    const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
    const Tasks tasks(x);
    const at::Tensor saved = at::empty({2, tasks.channels}, weight.options());
    float* mean = saved.mutable_data_ptr<float>();
    const Running running{running_mean.mutable_data_ptr<float>(), running_variance.mutable_data_ptr<float>(), momentum};
    statistics(x, tasks, epsilon, running, mean, mean + tasks.channels);
    const Coefficients coefficients(weight, bias, mean, mean + tasks.channels);
    at::Tensor y = at::empty_like(x);
    const auto* from = x.const_data_ptr<float>();
    auto* to = y.mutable_data_ptr<float>();
    tasks.run([&](int64_t, int64_t first, int64_t rows) {
      const int64_t start = first * tasks.channels;
      normalize(from + start, rows, coefficients.view(), rectify, to + start);
    });
    context->save_for_backward({x, weight, bias, saved});
    context->saved_data["rectify"] = rectify;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const bool rectify = context->saved_data["rectify"].toBool();
    const Tasks tasks(x);
    const int64_t channels = tasks.channels;
    const auto* mean = saved[3].const_data_ptr<float>();
    const float* inverse_deviation = mean + channels;
    const Coefficients coefficients(weight, saved[2], mean, inverse_deviation);
    const at::Tensor gradient = grad_outputs[0].contiguous(at::MemoryFormat::ChannelsLast);
    const auto* values = x.const_data_ptr<float>();
    const auto* grad = gradient.const_data_ptr<float>();
    const std::vector<double> sums =
        tasks.reduce([&](int64_t first, int64_t rows, float* scratch, double* sum, double* product) {
          const int64_t start = first * channels;
          add_gradients(values + start, grad + start, rows, coefficients.view(), mean, rectify, scratch, sum, product);
        });
    at::Tensor grad_weight = at::empty_like(weight), grad_bias = at::empty_like(weight), dx = at::empty_like(x);
    auto* by_weight = grad_weight.mutable_data_ptr<float>();
    auto* by_bias = grad_bias.mutable_data_ptr<float>();
    std::vector<float> by_x(channels), constant(channels);
    const auto count = static_cast<double>(tasks.rows);
    for (int64_t c = 0; c < channels; ++c) {
      const double inverse = inverse_deviation[c], scale = coefficients.scale[c], product = sums[channels + c];
      by_bias[c] = static_cast<float>(sums[c]);
      by_weight[c] = static_cast<float>(product * inverse);
      const double slope = inverse * inverse * product / count;
      by_x[c] = static_cast<float>(-slope * scale);
      constant[c] = static_cast<float>((slope * mean[c] - sums[c] / count) * scale);
    }
    auto* to = dx.mutable_data_ptr<float>();
    tasks.run([&](int64_t, int64_t first, int64_t rows) {
      const int64_t start = first * channels;
      gradient_of_input(values + start, grad + start, rows, coefficients.view(), by_x.data(), constant.data(), rectify,
                        to + start);
    });
    return {dx, grad_weight, grad_bias, {}, {}, {}, {}, {}};
  }
};

void check_arguments(const at::Tensor& input, std::initializer_list<const at::Tensor*> vectors) {
  if (input.dim() != 4 || !input.is_cpu() || input.scalar_type() != at::kFloat || input.numel() == 0) {
    throw InvalidArgument("batch_norm: expected float32 values [images, channels, height, width] on the CPU");
  }
  for (const at::Tensor* vector : vectors) {
    if (vector->dim() != 1 || vector->size(0) != input.size(1) || !vector->is_cpu() ||
        vector->scalar_type() != at::kFloat || !vector->is_contiguous()) {
      throw InvalidArgument("batch_norm: expected a dense float32 vector of " + std::to_string(input.size(1)) +
                            " values on the CPU for each of weight, bias and the running statistics");
    }
  }
}

}  // namespace
}  // namespace fnet

extern "C" FnetError* fnet_batch_norm(TensorPtr input, TensorPtr weight, TensorPtr bias, TensorPtr running_mean,
                                      TensorPtr running_variance, double momentum, double epsilon, bool rectify,
                                      TensorPtr* out) {
  return fnet::guarded([&] {
    fnet::check_arguments(*input, {weight, bias, running_mean, running_variance});
    *out = new at::Tensor(fnet::BatchNorm::apply(*input, *weight, *bias, *running_mean, *running_variance, momentum,
                                                 epsilon, rectify));
  });
}
