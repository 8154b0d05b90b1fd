// Reading several levels of a pyramid at once, with one backward pass for all of them.
#include "bridge.h"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

namespace fnet {
namespace {

// Rows of the tables of places that levels [n, c, h, w] are, level by level; zeros where `inside`, if it is there, is 0.
class GatherRows : public torch::autograd::Function<GatherRows> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, at::TensorList levels, const at::Tensor& rows,
                            const at::Tensor& flat_rows, const std::vector<int64_t>& counts,
                            const std::optional<at::Tensor>& inside) {
    std::vector<at::Tensor> found;
    std::vector<int64_t> shapes;
    for (size_t i = 0, start = 0; i < levels.size(); start += counts[i++]) {
      const at::Tensor& level = levels[i];
      const at::Tensor table = level.permute({0, 2, 3, 1}).reshape({-1, level.size(1)});
      found.push_back(table.index_select(0, rows.narrow(0, static_cast<int64_t>(start), counts[i])));
      shapes.insert(shapes.end(), {level.size(0), level.size(2), level.size(3)});
    }
    context->save_for_backward({flat_rows});
    context->saved_data["shapes"] = shapes;
    at::Tensor all = at::cat(found);
    if (inside) all.mul_(inside->to(all.scalar_type()));
    return all;
  }

  // The gradients of all levels lie in one tensor, which is cleared and added to in one call each. Its last row is of no
  // level: it takes the gradients of what lies outside.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto shapes = context->saved_data["shapes"].toIntVector();
    const int64_t channels = grads[0].size(1);
    int64_t total = 0;
    for (size_t i = 0; i < shapes.size(); i += 3) total += shapes[i] * shapes[i + 1] * shapes[i + 2];
    at::Tensor all = at::zeros({total + 1, channels}, grads[0].options());
    all.index_add_(0, context->get_saved_variables()[0], grads[0]);
    torch::autograd::variable_list by_level;
    for (size_t i = 0, start = 0; i < shapes.size(); i += 3) {
      const int64_t rows = shapes[i] * shapes[i + 1] * shapes[i + 2];
      const at::Tensor part = all.narrow(0, static_cast<int64_t>(start), rows);
      by_level.push_back(part.view({shapes[i], shapes[i + 1], shapes[i + 2], channels}).permute({0, 3, 1, 2}));
      start += rows;
    }
    by_level.resize(by_level.size() + 4);  // the rows, their counts and which lie inside have no gradient
    return by_level;
  }
};

// Each tensor twice; the gradients of all pairs are added in one call.
class Twice : public torch::autograd::Function<Twice> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*, at::TensorList tensors) {
    torch::autograd::variable_list both(tensors.begin(), tensors.end());
    both.insert(both.end(), tensors.begin(), tensors.end());
    return both;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list grads) {
    const auto middle = grads.begin() + static_cast<std::ptrdiff_t>(grads.size() / 2);
    return at::_foreach_add(std::vector<at::Tensor>(grads.begin(), middle), std::vector<at::Tensor>(middle, grads.end()));
  }
};

void check_rows(const std::vector<at::Tensor>& levels, const at::Tensor& rows, const at::Tensor& flat_rows,
                const std::vector<int64_t>& counts, const std::optional<at::Tensor>& inside) {
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  if (levels.empty() || rows.dim() != 1 || rows.numel() != total || flat_rows.sizes() != rows.sizes()) {
    throw InvalidArgument("rows of levels: expected as many rows, in their level and among all, as the counts say");
  }
  if (inside && (inside->dim() != 2 || inside->size(0) != total || inside->size(1) != 1)) {
    throw InvalidArgument("rows of levels: expected a factor for each row");
  }
  for (const at::Tensor& level : levels) {
    if (level.dim() != 4 || level.size(1) != levels[0].size(1)) {
      throw InvalidArgument("rows of levels: expected levels [n, c, h, w] of the same channels");
    }
  }
}

}  // namespace
}  // namespace fnet

// `counts` has a number for each level; `inside` may be null.
extern "C" FnetError* fnet_gather_rows(const TensorPtr* levels, size_t level_count, TensorPtr rows, TensorPtr flat_rows,
                                       const int64_t* counts, TensorPtr inside, TensorPtr* out) {
  return fnet::guarded([&] {
    const auto list = fnet::to_vector(levels, level_count);
    const std::vector<int64_t> numbers(counts, counts + level_count);
    const auto factors = inside == nullptr ? std::nullopt : std::optional<at::Tensor>(*inside);
    fnet::check_rows(list, *rows, *flat_rows, numbers, factors);
    *out = new at::Tensor(fnet::GatherRows::apply(at::TensorList(list), *rows, *flat_rows, numbers, factors));
  });
}

// Writes 2 * `count` tensors to `out`.
extern "C" FnetError* fnet_twice(const TensorPtr* tensors, size_t count, TensorPtr* out) {
  return fnet::guarded([&] {
    const auto list = fnet::to_vector(tensors, count);
    const auto both = fnet::Twice::apply(at::TensorList(list));
    for (const at::Tensor& tensor : both) *out++ = new at::Tensor(tensor);
  });
}

// Rectifies all tensors in place, in one call.
extern "C" FnetError* fnet_rectify(const TensorPtr* tensors, size_t count) {
  return fnet::guarded([&] { at::_foreach_clamp_min_(fnet::to_vector(tensors, count), 0); });
}
