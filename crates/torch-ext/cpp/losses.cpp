// The losses of a step divided and added up together.
#include "bridge.h"

#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>

namespace fnet {
namespace {

std::vector<at::Scalar> scalars(const std::vector<double>& values, size_t from) {
  return {values.begin() + static_cast<std::ptrdiff_t>(from), values.end()};
}

// Quotients of scalars, and the sum of those from number `first` on.
class JoinLosses : public torch::autograd::Function<JoinLosses> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, at::TensorList sums,
                                                const std::vector<double>& divisors, int64_t first) {
    const auto count = static_cast<int64_t>(sums.size());
    at::Tensor all = at::empty({count + 1}, sums[0].options());
    at::Tensor quotients = all.narrow(0, 0, count);
    at::stack_out(quotients, at::_foreach_div(sums, scalars(divisors, 0)));
    // The same memory, but no view to autograd.
    at::Tensor total = all.select(0, count).tensor_data();
    at::sum_out(total, quotients.narrow(0, first, count - first), at::IntArrayRef{0});
    context->saved_data["divisors"] = divisors;
    context->saved_data["first"] = first;
    context->mark_non_differentiable({all});
    // No zeros in place of the gradient that `all` does not have.
    context->set_materialize_grads(false);
    return {total, all};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto divisors = context->saved_data["divisors"].toDoubleVector();
    const auto first = static_cast<size_t>(context->saved_data["first"].toInt());
    torch::autograd::variable_list by_sum(first);
    for (at::Tensor& grad : at::_foreach_div(std::vector<at::Tensor>(divisors.size() - first, grads[0]), scalars(divisors, first))) {
      by_sum.push_back(std::move(grad));
    }
    by_sum.resize(by_sum.size() + 2);  // divisors and the first number have no gradient
    return by_sum;
  }
};

}  // namespace
}  // namespace fnet

// `sums` and `divisors` have `count` members.
extern "C" FnetError* fnet_join_losses(const TensorPtr* sums, const double* divisors, size_t count, size_t first,
                                       TensorPtr* total, TensorPtr* all) {
  return fnet::guarded([&] {
    const auto list = fnet::to_vector(sums, count);
    if (first >= count) throw fnet::InvalidArgument("losses: there is none to add up");
    for (const at::Tensor& sum : list) {
      if (sum.dim() != 0 || sum.scalar_type() != at::kFloat) throw fnet::InvalidArgument("losses: expected float32 scalars");
    }
    const auto both = fnet::JoinLosses::apply(at::TensorList(list), std::vector<double>(divisors, divisors + count), static_cast<int64_t>(first));
    *total = new at::Tensor(both[0]);
    *all = new at::Tensor(both[1]);
  });
}
