// Parts of a residual block with a backward pass of their own: the same values as libtorch's operators give, in fewer calls.
#include "bridge.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

namespace fnet {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Dense, so that the convolution need not copy it again in the backward pass.
at::Tensor first_channels(const at::Tensor& x, int64_t count) {
  return x.narrow(1, 0, count).contiguous(at::MemoryFormat::ChannelsLast);
}

at::Tensor mix(const at::Tensor& x, const at::Tensor& part, const at::Tensor& weight) {
  const int64_t count = weight.size(0), side = weight.size(2) / 2;
  const std::vector<int64_t> padding{side, side};
  // The operator that autocast knows.
  const at::Tensor convolved = at::conv2d(part, weight, {}, {1, 1}, at::IntArrayRef(padding), {1, 1}, 1);
  return at::cat({convolved, x.narrow(1, count, x.size(1) - count)}, 1);
}

// The first channels convolved, the others as they are; and the input once more, for the shortcut around the block, so
// that the two gradients of the input meet here.
class PartialConv : public torch::autograd::Function<PartialConv> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight) {
    const at::Tensor part = first_channels(x, weight.size(0));
    context->save_for_backward({part, weight});
    return {mix(x, part, weight), x};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &part = saved[0], &weight = saved[1], &mixed = grads[0], &shortcut = grads[1];
    const int64_t count = weight.size(0), side = weight.size(2) / 2;
    const auto [by_part, by_weight, none] =
        at::convolution_backward(mixed.narrow(1, 0, count), part, weight, std::nullopt, {1, 1}, {side, side}, {1, 1},
                                 false, {0, 0}, 1, {true, true, false});
    at::Tensor by_input = at::add(mixed, shortcut);
    at::Tensor first = by_input.narrow(1, 0, count);
    at::add_out(first, by_part, shortcut.narrow(1, 0, count));
    return {by_input, by_weight};
  }
};

// x + branch * factors, where the factors have no gradient.
class AddScaled : public torch::autograd::Function<AddScaled> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& branch,
                            const at::Tensor& factors) {
    context->save_for_backward({factors});
    return at::addcmul(x, branch, factors);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    return {grads[0], grads[0] * context->get_saved_variables()[0], {}};
  }
};

// a b. On the CPU a wide result is computed in parts, whose share of b stays in the caches.
at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  constexpr int64_t kColumns = 1792;
  const int64_t columns = b.size(1);
  if (columns <= 2 * kColumns || a.is_cuda()) return a.mm(b);
  at::Tensor result = at::empty({a.size(0), columns}, a.options());
  for (int64_t first = 0; first < columns; first += kColumns) {
    const int64_t count = std::min(kColumns, columns - first);
    at::Tensor part = result.narrow(1, first, count);
    at::mm_out(part, a, b.narrow(1, first, count));
  }
  return result;
}

// A linear layer and a rectifier, in one call. A bias that is shorter than the output is repeated.
class LinearRelu : public torch::autograd::Function<LinearRelu> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias) {
    const int64_t times = weight.size(0) / std::max<int64_t>(bias.size(0), 1);
    at::Tensor y = at::_addmm_activation(times > 1 ? bias.repeat(times) : bias, x, weight.t(), 1, 1, /*use_gelu=*/false);
    context->save_for_backward({x, weight, y});
    context->saved_data["biases"] = bias.size(0);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor grad = at::threshold_backward(grads[0], saved[2], 0);
    // In the order of the weight, which its gradient has to have.
    const at::Tensor by_weight = weight.is_contiguous() ? product(grad.t(), x) : product(x.t(), grad).t();
    const int64_t biases = context->saved_data["biases"].toInt();
    return {product(grad, weight), by_weight, grad.reshape({-1, biases}).sum(0)};
  }
};

// Under autocast operators cast their arguments, and derivatives have to follow.
bool is_plain(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat && !at::autocast::is_autocast_enabled(x.device().type());
}

void check_partial(const at::Tensor& x, const at::Tensor& weight) {
  if (x.dim() != 4 || weight.dim() != 4 || weight.size(0) != weight.size(1) || weight.size(0) > x.size(1) ||
      weight.size(2) != weight.size(3)) {
    throw InvalidArgument("partial convolution: expected values [n, c, h, w] and a kernel [k, k, s, s] with k <= c");
  }
}

}  // namespace
}  // namespace fnet

extern "C" FnetError* fnet_partial_conv(TensorPtr x, TensorPtr weight, TensorPtr* mixed, TensorPtr* shortcut) {
  return fnet::guarded([&] {
    fnet::check_partial(*x, *weight);
    fnet::variable_list both;
    if (fnet::is_plain(*x)) {
      both = fnet::PartialConv::apply(*x, *weight);
    } else {
      both = {fnet::mix(*x, fnet::first_channels(*x, weight->size(0)), *weight), *x};
    }
    *mixed = new at::Tensor(both[0]);
    *shortcut = new at::Tensor(both[1]);
  });
}

extern "C" FnetError* fnet_add_scaled(TensorPtr x, TensorPtr branch, TensorPtr factors, TensorPtr* out) {
  return fnet::guarded([&] {
    const bool plain = fnet::is_plain(*x) && branch->scalar_type() == at::kFloat && factors->scalar_type() == at::kFloat;
    *out = new at::Tensor(plain ? fnet::AddScaled::apply(*x, *branch, *factors)
                                : at::addcmul(*x, *branch, factors->to(branch->scalar_type())));
  });
}

extern "C" FnetError* fnet_linear_relu(TensorPtr x, TensorPtr weight, TensorPtr bias, TensorPtr* out) {
  return fnet::guarded([&] {
    if (x->dim() != 2 || weight->dim() != 2 || bias->dim() != 1 || x->size(1) != weight->size(1) ||
        bias->size(0) == 0 || weight->size(0) % bias->size(0) != 0) {
      throw fnet::InvalidArgument("linear layer: expected values [n, in], a weight [out, in] and a bias [out] or a part of it");
    }
    const int64_t times = weight->size(0) / bias->size(0);
    *out = new at::Tensor(fnet::is_plain(*x) ? fnet::LinearRelu::apply(*x, *weight, *bias)
                                             : at::linear(*x, *weight, times > 1 ? bias->repeat(times) : *bias).relu_());
  });
}
