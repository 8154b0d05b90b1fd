// Optimizer steps and norms over whole lists of tensors.
#include "optim.h"

#include "bridge.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

namespace fnet {
namespace {

// Whether the values lie in the same order: the stride of a side of 1 says nothing.
bool same_order(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// Parameters with a gradient, their gradients, and the same rows of up to three lists of states.
struct Rows {
  std::vector<at::Tensor> parameters, grads, states[3];
};

Rows rows_with_gradient(const TensorPtr* parameters, size_t count, std::initializer_list<const TensorPtr*> states) {
  Rows rows;
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor& grad = parameters[i]->grad();
    if (!grad.defined()) continue;
    rows.parameters.push_back(*parameters[i]);
    // The fused kernels walk parameter, gradient and state side by side.
    rows.grads.push_back(in_order_of(*parameters[i], grad));
    size_t list = 0;
    for (const TensorPtr* state : states) rows.states[list++].push_back(*state[i]);
  }
  return rows;
}

std::vector<at::Tensor> defined_gradients(const TensorPtr* parameters, size_t count) {
  std::vector<at::Tensor> grads;
  for (size_t i = 0; i < count; ++i) {
    if (parameters[i]->grad().defined()) grads.push_back(parameters[i]->grad());
  }
  return grads;
}

at::Tensor total_norm(const std::vector<at::Tensor>& tensors) {
  if (tensors.empty()) return at::zeros({}, at::kFloat);
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(tensors, 2)));
}

}  // namespace

at::Tensor in_order_of(const at::Tensor& like, const at::Tensor& grad) {
  if (grad.scalar_type() == like.scalar_type() && same_order(like, grad)) {
    return grad.strides() == like.strides() ? grad : grad.as_strided(like.sizes(), like.strides());
  }
  return at::empty_like(like).copy_(grad);
}

}  // namespace fnet

extern "C" FnetError* fnet_adamw_step(const TensorPtr* parameters, const TensorPtr* exp_avg,
                                      const TensorPtr* exp_avg_sq, const TensorPtr* steps, size_t count, double lr,
                                      double beta1, double beta2, double weight_decay, double eps) {
  return fnet::guarded([&] {
    at::NoGradGuard no_grad;
    auto rows = fnet::rows_with_gradient(parameters, count, {exp_avg, exp_avg_sq, steps});
    if (rows.parameters.empty()) return;
    at::_foreach_add_(rows.states[2], 1);
    at::_fused_adamw_(rows.parameters, rows.grads, rows.states[0], rows.states[1], {}, rows.states[2], lr, beta1,
                      beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{}, /*found_inf=*/{});
  });
}

extern "C" FnetError* fnet_sgd_step(const TensorPtr* parameters, const TensorPtr* momentum_buffers, size_t count,
                                    double lr, double momentum, double weight_decay, bool nesterov) {
  return fnet::guarded([&] {
    at::NoGradGuard no_grad;
    auto rows = fnet::rows_with_gradient(parameters, count, {momentum_buffers});
    if (rows.parameters.empty()) return;
    // The kernel refuses buffers where there is no momentum.
    if (momentum == 0.0) rows.states[0].clear();
    // A buffer of zeros gives the gradient itself in the first step, since dampening is zero.
    at::_fused_sgd_(rows.parameters, rows.grads, rows.states[0], weight_decay, momentum, lr, /*dampening=*/0.0,
                    nesterov, /*maximize=*/false, /*is_first_step=*/false, /*grad_scale=*/{}, /*found_inf=*/{});
  });
}

extern "C" FnetError* fnet_norm(const TensorPtr* tensors, size_t count, TensorPtr* out) {
  return fnet::guarded([&] {
    at::NoGradGuard no_grad;
    *out = new at::Tensor(fnet::total_norm(fnet::to_vector(tensors, count)));
  });
}

extern "C" FnetError* fnet_grad_norm(const TensorPtr* parameters, size_t count, TensorPtr* out) {
  return fnet::guarded([&] {
    at::NoGradGuard no_grad;
    *out = new at::Tensor(fnet::total_norm(fnet::defined_gradients(parameters, count)));
  });
}

extern "C" FnetError* fnet_clip_grad_norm(const TensorPtr* parameters, size_t count, double max_norm, TensorPtr* out) {
  return fnet::guarded([&] {
    at::NoGradGuard no_grad;
    auto grads = fnet::defined_gradients(parameters, count);
    at::Tensor norm = fnet::total_norm(grads);
    // On the device throughout: no wait for the norm's value.
    if (!grads.empty()) at::_foreach_mul_(grads, norm.add(1e-6).reciprocal().mul(max_norm).clamp_max(1.0));
    *out = new at::Tensor(std::move(norm));
  });
}

// `out` is 1 if a gradient is not finite, else 0, on the gradients' device.
extern "C" FnetError* fnet_unscale_gradients(const TensorPtr* parameters, size_t count, double inverse_scale, TensorPtr* out) {
  return fnet::guarded([&] {
    at::NoGradGuard no_grad;
    auto grads = fnet::defined_gradients(parameters, count);
    const auto options = (grads.empty() ? at::TensorOptions() : grads[0].options()).dtype(at::kFloat);
    at::Tensor found = at::zeros({}, options);
    if (!grads.empty()) at::_amp_foreach_non_finite_check_and_unscale_(grads, found, at::full({}, inverse_scale, options));
    *out = new at::Tensor(std::move(found));
  });
}

extern "C" FnetError* fnet_clear_gradients(const TensorPtr* parameters, size_t count) {
  return fnet::guarded([&] {
    for (size_t i = 0; i < count; ++i) parameters[i]->mutable_grad() = at::Tensor();
  });
}
