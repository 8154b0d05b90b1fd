// Time, operations and memory traffic of each operator that a thread calls, by name and shapes. On the CPU the backward pass
// runs on the thread that asks for it.
#include "bridge.h"

#include <ATen/record_function.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <string_view>

namespace fnet {
namespace {

struct ProfiledTotals {
  uint64_t calls = 0, nanoseconds = 0;
  double operations = 0, bytes = 0;
};

thread_local std::map<std::string, ProfiledTotals> profiled_totals;
thread_local at::CallbackHandle profiler = 0;

struct ProfiledCall : at::ObserverContext {
  std::chrono::steady_clock::time_point started;
  ProfiledCall* caller;
  // Time of operators that this one calls.
  uint64_t inner = 0;
  std::string key;
  double operations = 0, bytes = 0;
};

thread_local ProfiledCall* current_call = nullptr;

constexpr std::string_view kConvolution = "aten::mkldnn_convolution";

// Shapes of the tensors among the arguments, except those of lists.
std::string shapes_of(c10::ArrayRef<const c10::IValue> arguments) {
  std::string text;
  for (const c10::IValue& argument : arguments) {
    if (!argument.isTensor() || !argument.toTensor().defined()) continue;
    text += text.empty() ? "" : " ";
    const auto sizes = argument.toTensor().sizes();
    for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : "x") + std::to_string(sizes[i]);
  }
  return text;
}

double bytes_of(const c10::IValue& value) {
  if (value.isTensor() && value.toTensor().defined()) return static_cast<double>(value.toTensor().nbytes());
  double sum = 0;
  if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) sum += tensor.defined() ? static_cast<double>(tensor.nbytes()) : 0;
  }
  return sum;
}

// Multiplications and additions of convolutions and matrix products; 0 for all other operators, and those of one value of
// the result for a convolution.
double operations_of(std::string_view name, c10::ArrayRef<const c10::IValue> inputs) {
  const auto tensor = [&](size_t i) { return inputs[i].toTensor(); };
  if (name == "aten::mm" || name == "aten::bmm") return 2.0 * tensor(0).numel() * tensor(1).size(-1);
  if (name == "aten::addmm" || name == "aten::_addmm_activation") return 2.0 * tensor(1).numel() * tensor(2).size(-1);
  if (name == kConvolution) return 2.0 * tensor(1).numel() / std::max<int64_t>(tensor(1).size(0), 1);
  if (name == "aten::convolution_backward") {
    const auto wanted = inputs[10].toBoolList();
    // A transposed convolution's weight begins with the channels of its input.
    const at::Tensor& spread = inputs[7].toBool() ? tensor(1) : tensor(0);
    const double each = 2.0 * tensor(2).numel() / std::max<int64_t>(tensor(2).size(0), 1);
    return each * spread.numel() * (int{wanted[0]} + int{wanted[1]});
  }
  return 0;
}

std::unique_ptr<at::ObserverContext> begin_call(const at::RecordFunction& function) {
  auto call = std::make_unique<ProfiledCall>();
  call->key = function.name();
  if (function.scope() == at::RecordScope::FUNCTION) {
    call->key += '\t' + shapes_of(function.inputs());
    for (const c10::IValue& value : function.inputs()) call->bytes += bytes_of(value);
    call->operations = operations_of(function.name(), function.inputs());
  }
  call->caller = current_call;
  current_call = call.get();
  call->started = std::chrono::steady_clock::now();
  return call;
}

void end_call(const at::RecordFunction& function, at::ObserverContext* context) {
  const auto elapsed = std::chrono::steady_clock::now() - static_cast<ProfiledCall*>(context)->started;
  auto* call = static_cast<ProfiledCall*>(context);
  const auto whole = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count());
  current_call = call->caller;
  if (current_call != nullptr) current_call->inner += whole;
  if (function.scope() == at::RecordScope::FUNCTION) {
    for (const c10::IValue& value : function.outputs()) call->bytes += bytes_of(value);
    if (function.name() == kConvolution) call->operations *= static_cast<double>(function.outputs()[0].toTensor().numel());
  }
  ProfiledTotals& total = profiled_totals[call->key];
  total.calls += 1;
  total.nanoseconds += whole - std::min(call->inner, whole);
  total.operations += call->operations;
  total.bytes += call->bytes;
}

}  // namespace
}  // namespace fnet

extern "C" FnetError* fnet_profile_start() {
  return fnet::guarded([] {
    if (fnet::profiler != 0) throw fnet::InvalidArgument("profile: started twice");
    auto callback = at::RecordFunctionCallback(fnet::begin_call, fnet::end_call).needsInputs(true).needsOutputs(true);
    callback.scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
    fnet::profiler = at::addThreadLocalCallback(callback);
  });
}

// Ends the profile and hands over each entry: name, a tab and the shapes; calls; nanoseconds without inner operators;
// floating-point operations; bytes of arguments and results.
extern "C" FnetError* fnet_profile_stop(void* to, void (*take)(void*, const char*, size_t, uint64_t, uint64_t, double, double)) {
  return fnet::guarded([&] {
    at::removeCallback(fnet::profiler);
    fnet::profiler = 0;
    for (const auto& [key, total] : fnet::profiled_totals) {
      take(to, key.data(), key.size(), total.calls, total.nanoseconds, total.operations, total.bytes);
    }
    fnet::profiled_totals.clear();
  });
}
