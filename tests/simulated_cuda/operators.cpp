// Operators: one boxed kernel for the CUDA key of every operator that the real libtorch_cuda has a kernel for, which calls
// the CPU's on tensors that lie where kernels work.
#include "sim.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <torch/library.h>

namespace sim {

void fault_before_convolution();

// FNET_SIM_NO_COMPUTE: kernels run for so many steps. From then on small results, on which the host may act, are those of
// the same call in the last of these steps; large ones hold whatever is there; and what is left is the host's work.
int64_t computed_steps() {
  static const int64_t last = setting("FNET_SIM_NO_COMPUTE", -1);
  return last;
}
bool computes() { return computed_steps() < 0 || steps_done() < computed_steps(); }

namespace {

struct KnownOperator {
  const char* name;
  bool unchecked;
};
// Those with a kernel in the real libtorch_cuda; made at build time.
constexpr KnownOperator kKnown[] = {
#include "operators.inc"
};

// A tensor of the device over a storage.
Tensor device_tensor(c10::Storage storage, const Tensor& like) {
  Tensor t = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA), like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.is_conj()) t.unsafeGetTensorImpl()->_set_conj(true);
  if (like.is_neg()) t.unsafeGetTensorImpl()->_set_neg(true);
  return t;
}

Tensor cpu_tensor(c10::Storage storage, const Tensor& like) {
  Tensor t = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), like.dtype());
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (like.is_conj()) impl->_set_conj(true);
  if (like.is_neg()) impl->_set_neg(true);
  return t;
}

c10::Storage host_storage(const c10::Storage& device) {
  return c10::Storage(c10::Storage::use_byte_size_t(), device.nbytes(),
                      c10::DataPtr(real_address(device.data()), Device(c10::kCPU)), c10::GetAllocator(c10::kCPU), /*resizable=*/true);
}

c10::Storage fresh_storage(size_t bytes, DeviceIndex device) {
  return c10::Storage(c10::Storage::use_byte_size_t(), bytes, allocate(bytes, device), device_allocator(), /*resizable=*/true);
}

// A generator of the device, which draws as one of the CPU.
struct Generator final : c10::GeneratorImpl {
  at::Generator inner = at::detail::createCPUGenerator();
  explicit Generator(DeviceIndex i) : GeneratorImpl(Device(c10::kCUDA, i), c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t s) override { inner.set_current_seed(s); }
  void set_offset(uint64_t o) override { inner.set_offset(o); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorImpl* clone_impl() const override {
    auto* copy = new Generator(device().index());
    copy->inner = inner.clone();
    return copy;
  }
};

const at::Generator& default_generator(DeviceIndex i) {
  static const auto* all = [] {
    auto* list = new std::vector<at::Generator>();
    for (int k = 0; k < SIM_MAX_GPUS; ++k) list->push_back(at::make_generator<Generator>(static_cast<DeviceIndex>(k)));
    return list;
  }();
  return (*all)[static_cast<size_t>(i < 0 ? current_device() : i)];
}

at::Generator inner_generator(const at::Generator& g) {
  auto* own = dynamic_cast<Generator*>(g.unsafeGetGeneratorImpl());
  TORCH_CHECK(own != nullptr, "Expected a 'cuda' device type for generator but found 'cpu'");
  return own->inner;
}

// Whether results are returned rather than written to an argument.
bool overload_is_plain(const c10::FunctionSchema& schema) { return schema.overload_name() != "out"; }

// What is known of an operator.
struct Operator {
  std::string name, base;  // with and without the overload's name
  bool unchecked;          // takes 0-dim tensors of the CPU beside those of the device
  bool takes_host_indices, waits, convolution, batch_norm, product;
  std::vector<bool> writes;  // by argument
  bool view = false;         // returns an alias and computes nothing
  bool only_writes = true;   // returns nothing but its arguments

  Operator(const c10::OperatorHandle& op, bool unchecked_) : unchecked(unchecked_) {
    const auto& schema = op.schema();
    base = schema.name();
    name = schema.overload_name().empty() ? base : base + "." + schema.overload_name();
    for (const auto& argument : schema.arguments()) {
      writes.push_back(argument.alias_info() != nullptr && argument.alias_info()->isWrite());
    }
    for (const auto& value : schema.returns()) {
      if (value.alias_info() == nullptr) only_writes = false;
      if (value.alias_info() != nullptr && !value.alias_info()->isWrite()) {
        view = true;
        only_writes = false;
      }
    }
    takes_host_indices = base == "aten::index" || base == "aten::_index_put_impl_";
    // The shape of the result, or what the kernel does, depends on values: CUDA's kernel waits for the device.
    static const std::set<std::string> waiting{
        "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
        "aten::unique_dim_consecutive", "aten::bincount", "aten::equal", "aten::repeat_interleave", "aten::_unique",
        "aten::_linalg_check_errors", "aten::multinomial", "torchvision::nms"};
    waits = waiting.count(base) != 0;
    convolution = base == "aten::convolution" || base == "aten::convolution_backward";
    batch_norm = base.find("batch_norm") != std::string::npos;
    static const std::set<std::string> products{"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv"};
    product = overload_is_plain(schema) && products.count(base) != 0;
  }
};

// The tensors of one call as the CPU's kernel sees them.
class Aliases {
 public:
  Tensor of(const Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    for (auto& pair : tensors_) {
      if (pair.device.is_same(t)) return pair.host;
    }
    Tensor host = cpu_tensor(storage_of(t.storage()), t);
    tensors_.push_back({t, host});
    return host;
  }

  // A result on the device; `fresh` takes one whose memory is new.
  Tensor result(const Tensor& host, DeviceIndex device, std::vector<std::pair<Tensor, Tensor>>& fresh) {
    if (!host.defined()) return host;
    for (auto& pair : tensors_) {
      if (pair.host.is_same(host)) return pair.device;
    }
    for (auto& pair : storages_) {
      if (pair.host.is_alias_of(host.storage())) return device_tensor(pair.device, host);
    }
    Tensor t = device_tensor(fresh_storage(host.storage().nbytes(), device), host);
    fresh.emplace_back(t, host);
    return t;
  }

  // Kernels may have given their outputs another shape, or more memory.
  void bring_shapes_back() {
    for (auto& pair : storages_) {
      if (pair.host.data() == real_address(pair.device.data()) && pair.host.nbytes() == pair.device.nbytes()) continue;
      auto data = allocate(pair.host.nbytes(), pair.device.device().index());
      if (pair.host.nbytes() > 0) std::memcpy(real_address(data.get()), pair.host.data(), pair.host.nbytes());
      pair.device.set_data_ptr_noswap(std::move(data));
      pair.device.set_nbytes(pair.host.nbytes());
    }
    for (auto& pair : tensors_) {
      if (pair.host.sizes() == pair.device.sizes() && pair.host.strides() == pair.device.strides()) continue;
      pair.device.unsafeGetTensorImpl()->set_sizes_and_strides(pair.host.sizes(), pair.host.strides(), pair.host.storage_offset());
    }
  }

 private:
  struct TensorPair {
    Tensor device, host;
  };
  struct StoragePair {
    c10::Storage device, host;
  };
  c10::Storage storage_of(const c10::Storage& device) {
    for (auto& pair : storages_) {
      if (pair.device.is_alias_of(device)) return pair.host;
    }
    storages_.push_back({device, host_storage(device)});
    return storages_.back().host;
  }
  c10::SmallVector<TensorPair, 8> tensors_;
  c10::SmallVector<StoragePair, 8> storages_;
};

// Calls body(tensor, argument) for each tensor of a call.
template <class Body>
void each_tensor(c10::ArrayRef<c10::IValue> arguments, const Body& body) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& v = arguments[i];
    if (v.isTensor()) {
      if (v.toTensor().defined()) body(v.toTensor(), i);
    } else if (v.isTensorList()) {
      for (const Tensor& t : v.toTensorVector()) {
        if (t.defined()) body(t, i);
      }
    } else if (v.isList()) {
      for (const c10::IValue& item : v.toListRef()) {
        if (item.isTensor() && item.toTensor().defined()) body(item.toTensor(), i);
      }
    }
  }
}

// The one device of the call's tensors, or the one that is named.
Device device_of(const Operator& op, c10::ArrayRef<c10::IValue> arguments) {
  std::optional<Device> device;
  each_tensor(arguments, [&](const Tensor& t, size_t) {
    if (!t.is_cuda()) return;
    if (!device) device = t.device();
    TORCH_CHECK(*device == t.device(), "Expected all tensors to be on the same device, but found at least two devices, ",
                *device, " and ", t.device(), "! (", op.name, ")");
  });
  if (!device) {
    for (const auto& v : arguments) {
      if (v.isDevice()) device = v.toDevice();
    }
  }
  if (!device || !device->has_index()) device = Device(c10::kCUDA, current_device());
  each_tensor(arguments, [&](const Tensor& t, size_t i) {
    if (t.is_cuda()) return;
    if (op.takes_host_indices && i == 1) {
      count(Count::kWait, "upload of an index");
      return;
    }
    TORCH_CHECK(op.unchecked && t.dim() == 0 && !op.writes[i] && t.is_cpu(),
                "Expected all tensors to be on the same device, but found at least two devices, ", *device, " and ", t.device(),
                "! (", op.name, ", argument ", i, ")");
  });
  return *device;
}

c10::IValue to_host(const c10::IValue& v, const c10::Argument& argument, Aliases& aliases, DeviceIndex device) {
  if (v.isTensor()) return aliases.of(v.toTensor());
  if (v.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : v.toTensorVector()) list.push_back(aliases.of(t));
    return list;
  }
  if (v.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const c10::IValue& item : v.toListRef()) {
      list.push_back(item.isTensor() ? std::optional<Tensor>(aliases.of(item.toTensor())) : std::nullopt);
    }
    return list;
  }
  if (v.isDevice()) return Device(c10::kCPU);
  if (v.isGenerator()) return inner_generator(v.toGenerator());
  if (v.isNone() && argument.type()->kind() == c10::TypeKind::OptionalType &&
      argument.type()->castRaw<c10::OptionalType>()->getElementType()->kind() == c10::TypeKind::GeneratorType) {
    return inner_generator(default_generator(device));
  }
  return v;
}

// Values that the host may change after the call are copied for a kernel that runs later, and so is the state of a
// generator, which moves on at once.
void keep_values(torch::jit::Stack& stack) {
  for (c10::IValue& v : stack) {
    if (v.isGenerator()) {
      v = v.toGenerator().clone();
    } else if (v.isTensor() && v.toTensor().defined() && v.toTensor().dim() == 0) {
      const Tensor& t = v.toTensor();
      if (!is_work_memory(t.storage().data())) v = t.clone();
    }
  }
}

void call(const c10::OperatorHandle& op, const Operator& known, torch::jit::Stack& stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  static const bool wide = setting("FNET_SIM_WIDE_HALF", 0) != 0;
  const bool heavy = known.convolution || known.product;
  const auto kind = heavy ? stack[0].toTensor().scalar_type() : at::kFloat;
  const bool widen = wide && heavy && c10::isReducedFloatingType(kind);
  const auto convert = [&](at::ScalarType to) {
    for (auto& v : stack) {
      if (v.isTensor() && v.toTensor().defined()) v = v.toTensor().to(to);
    }
  };
  const auto format = convolution_format(known.base, stack);
  if (widen) convert(at::kFloat);
  before_kernel(known.base, stack);
  op.callBoxed(&stack);
  if (widen) convert(kind);
  format_results(known.base, format, stack);
}

// Shapes of results by what determines them, for runs without computation.
struct Shapes {
  std::mutex mutex;
  std::unordered_map<std::string, torch::jit::Stack> known;
};
Shapes& shapes() {
  static auto* one = new Shapes();
  return *one;
}

// What one call of a step left in small results.
struct Memo {
  std::string name;
  std::vector<std::vector<char>> bytes;
};
std::vector<Memo>& memos() {
  static auto* list = new std::vector<Memo>();
  return *list;
}

void each_small(const torch::jit::Stack& results, const std::function<void(char*, size_t)>& body) {
  each_tensor(results, [&](const Tensor& t, size_t) {
    const size_t bytes = t.storage().nbytes();
    if (t.is_cuda() && bytes > 0 && bytes <= kSmall) body(static_cast<char*>(real_address(t.storage().data())), bytes);
  });
}

void remember(size_t call, const std::string& name, const torch::jit::Stack& results) {
  if (memos().size() <= call) memos().resize(call + 1);
  Memo& memo = memos()[call];
  memo = {name, {}};
  each_small(results, [&](char* p, size_t n) { memo.bytes.emplace_back(p, p + n); });
}

void repeat(size_t call, const std::string& name, const torch::jit::Stack& results) {
  const Memo* memo = call < memos().size() && memos()[call].name == name ? &memos()[call] : nullptr;
  size_t i = 0;
  each_small(results, [&](char* p, size_t n) {
    const bool known = memo != nullptr && i < memo->bytes.size() && memo->bytes[i].size() == n;
    if (known) std::memcpy(p, memo->bytes[i].data(), n);
    else std::memset(p, 0, n);
    ++i;
  });
}

std::string signature(const Operator& op, c10::ArrayRef<c10::IValue> arguments) {
  std::string key = op.name;
  const auto add = [&](const void* p, size_t n) { key.append(static_cast<const char*>(p), n); };
  const auto tensor = [&](const Tensor& t) {
    if (!t.defined()) return;
    const auto kind = t.scalar_type();
    add(&kind, sizeof kind);
    add(t.sizes().data(), t.dim() * 8);
    add(t.strides().data(), t.dim() * 8);
  };
  for (const auto& v : arguments) {
    key += v.isNone() ? 'N' : v.isTensor() ? 'T' : 'V';
    if (v.isTensor()) tensor(v.toTensor());
    else if (v.isTensorList()) for (const Tensor& t : v.toTensorVector()) tensor(t);
    else if (v.isOptionalTensorList()) { for (const c10::IValue& t : v.toListRef()) { key += t.isTensor() ? 'T' : 'N'; if (t.isTensor()) tensor(t.toTensor()); } }
    else if (v.isInt()) { const int64_t n = v.toInt(); add(&n, 8); }
    else if (v.isIntList()) for (const int64_t n : v.toIntVector()) add(&n, 8);
    else if (v.isBool()) key += v.toBool() ? '1' : '0';
    else if (v.isDouble()) { const double d = v.toDouble(); add(&d, 8); }
    else if (v.isSymInt()) { const int64_t n = v.toSymInt().expect_int(); add(&n, 8); }
  }
  return key;
}

class Kernel final : public c10::OperatorKernel {
 public:
  explicit Kernel(std::shared_ptr<const Operator> known) : known_(std::move(known)) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const Operator& known = *known_;
    const auto& schema = op.schema();
    const size_t size = schema.arguments().size();
    const size_t first = stack->size() - size;
    const auto arguments = c10::ArrayRef<c10::IValue>(*stack).slice(first);
    fault_before_operator();
    if (known.convolution) {
      convolution_begins();
      fault_before_convolution();
    }
    const Device device = device_of(known, arguments);
    check_device(device.index(), known.name.c_str());
    check_call(known.base, arguments);

    Aliases aliases;
    torch::jit::Stack host;
    host.reserve(size);
    for (size_t i = 0; i < size; ++i) host.push_back(to_host(arguments[i], schema.arguments()[i], aliases, device.index()));

    if (known.view) {
      call(op, known, host);
    } else {
      std::vector<Access> accesses;
      each_tensor(arguments, [&](const Tensor& t, size_t i) {
        Block* block = t.is_cuda() ? block_of(t.storage()) : nullptr;
        if (block == nullptr) return;
        // A kernel that changes running statistics does not say so.
        const bool write = known.writes[i] || (known.batch_norm && i >= 3 && t.dim() == 1 && known.base.find("backward") == std::string::npos);
        for (Access& access : accesses) {
          if (access.block != block) continue;
          access.write |= write;
          return;
        }
        accesses.push_back({block, write});
      });
      count(Count::kOperator, known.name);
      const auto number = static_cast<size_t>(next_call());
      const bool is_last = computes() && steps_done() + 1 == computed_steps();
      run(op, device, aliases, host, accesses, arguments);
      if (is_last) remember(number, known.name, host);
      if (!computes()) repeat(number, known.name, host);
      stack->resize(first);
      for (c10::IValue& v : host) stack->push_back(std::move(v));
      return;
    }
    std::vector<std::pair<Tensor, Tensor>> fresh;
    wrap(host, aliases, device.index(), fresh);
    stack->resize(first);
    for (c10::IValue& v : host) stack->push_back(std::move(v));
  }

 private:
  // Turns results of the CPU into the device's.
  static void wrap(torch::jit::Stack& results, Aliases& aliases, DeviceIndex device, std::vector<std::pair<Tensor, Tensor>>& fresh) {
    for (c10::IValue& v : results) {
      if (v.isTensor()) {
        v = aliases.result(v.toTensor(), device, fresh);
      } else if (v.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& t : v.toTensorVector()) list.push_back(aliases.result(t, device, fresh));
        v = std::move(list);
      }
    }
  }

  static void fill(const std::vector<std::pair<Tensor, Tensor>>& fresh) {
    for (const auto& [device, host] : fresh) {
      if (host.storage().nbytes() > 0) std::memcpy(real_address(device.storage().data()), host.storage().data(), host.storage().nbytes());
    }
  }

  // The results that a call would have returned as its arguments.
  static torch::jit::Stack returned_arguments(const c10::FunctionSchema& schema, c10::ArrayRef<c10::IValue> arguments) {
    torch::jit::Stack results;
    for (const auto& value : schema.returns()) {
      for (size_t i = 0; i < arguments.size(); ++i) {
        const auto* alias = schema.arguments()[i].alias_info();
        if (alias != nullptr && *alias == *value.alias_info()) {
          results.push_back(arguments[i]);
          break;
        }
      }
    }
    return results;
  }

  void run(const c10::OperatorHandle& op, Device device, Aliases& aliases, torch::jit::Stack& host,
           const std::vector<Access>& accesses, c10::ArrayRef<c10::IValue> arguments) {
    const Operator& known = *known_;
    const int stream = current_stream(device.index());
    if (!computes()) {
      enqueue(stream, known.name.c_str(), accesses, [] {}, [] { return std::function<void()>([] {}); });
      if (known.waits) {
        count(Count::kWait, known.base);
        wait_for(last_of(stream));
      }
      return run_shapes(op, device, aliases, host, arguments);
    }
    if (known.waits) {
      count(Count::kWait, known.base);
      // Every kernel of this kind reads its inputs on the host.
      wait_for(last_of(stream));
    }
    const bool behind = is_behind(stream);
    if (behind && known.only_writes) {
      const auto results = returned_arguments(op.schema(), arguments);
      const auto work = [&op, &known, host]() mutable { call(op, known, host); };
      const auto later = [&, work]() -> std::function<void()> {
        keep_values(host);
        return [op, &known, host]() mutable { call(op, known, host); };
      };
      enqueue(stream, known.name.c_str(), accesses, work, later);
      host = results;
      return;
    }
    std::vector<std::pair<Tensor, Tensor>> fresh;
    const bool keeps_shapes = computed_steps() > 0 && !known.only_writes && !known.waits;
    if (behind) {
      torch::jit::Stack kept = host;
      keep_values(kept);
      if (run_ahead(op, device, aliases, host, fresh)) {
        std::vector<Access> all = accesses;
        for (const auto& pair : fresh) {
          if (Block* block = block_of(pair.first.storage())) all.push_back({block, true});
        }
        std::vector<void*> targets;
        for (const auto& pair : fresh) targets.push_back(real_address(pair.first.storage().data()));
        const auto again = [op, &known, kept, targets]() mutable {
          call(op, known, kept);
          // As they were counted: without the gradients that nobody wanted, which are no tensors.
          size_t i = 0;
          each_tensor(kept, [&](const Tensor& t, size_t) {
            void* target = targets[i++];
            if (t.storage().nbytes() > 0) std::memcpy(target, t.storage().data(), t.storage().nbytes());
          });
        };
        enqueue(stream, known.name.c_str(), all, again, [&again]() -> std::function<void()> { return again; });
        return;
      }
      // Its shapes cannot be told ahead: the only place where the host waits here and not on a GPU.
      count(Count::kOther, "kernels that the host had to wait for: " + known.base);
      wait_for(last_of(stream));
    }
    enqueue(stream, known.name.c_str(), accesses,
            [&] { call(op, known, host); },
            [&]() -> std::function<void()> { die("a stream fell behind by another thread's work while " + known.name + " was to run at once"); });
    aliases.bring_shapes_back();
    if (keeps_shapes) keep_shapes(signature(known, arguments), host);
    wrap(host, aliases, device.index(), fresh);
    fill(fresh);
    Block* block = nullptr;
    std::vector<Access> written;
    for (const auto& pair : fresh) {
      if ((block = block_of(pair.first.storage())) != nullptr) written.push_back({block, true});
    }
    mark_written(stream, known.name.c_str(), written);
    if (known.waits) wait_for(last_of(stream));
  }

  // Puts zeros in place of tensors.
  static void put_zeros(torch::jit::Stack& arguments, bool (*which)(const Tensor&)) {
    const auto zeros = [which](const Tensor& t) {
      return t.defined() && which(t) ? at::empty_strided(t.sizes(), t.strides(), t.options()).zero_() : t;
    };
    for (c10::IValue& v : arguments) {
      if (v.isTensor()) {
        v = zeros(v.toTensor());
      } else if (v.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& t : v.toTensorVector()) list.push_back(zeros(t));
        v = std::move(list);
      }
    }
  }

  // Runs a kernel on whatever its inputs hold now, for the shapes of its results.
  bool run_ahead(const c10::OperatorHandle& op, Device device, Aliases& aliases, torch::jit::Stack& host,
                 std::vector<std::pair<Tensor, Tensor>>& fresh) {
    const Operator& known = *known_;
    if (known.batch_norm) {
      // It would change running statistics twice.
      for (c10::IValue& v : host) {
        if (v.isTensor() && v.toTensor().defined()) v = v.toTensor().clone();
      }
    }
    for (size_t i = 0; i < known.writes.size(); ++i) {
      if (known.writes[i]) return false;
    }
    const torch::jit::Stack given = host;
    try {
      call(op, known, host);
    } catch (const std::exception&) {
      // What is there may be no index that a kernel can bear.
      host = given;
      put_zeros(host, [](const Tensor& t) { return at::isIntegralType(t.scalar_type(), /*includeBool=*/false); });
      try {
        call(op, known, host);
      } catch (const std::exception&) {
        host = given;
        return false;
      }
    }
    wrap(host, aliases, device.index(), fresh);
    // One result each, in the order in which they come again.
    size_t results = 0;
    each_tensor(host, [&](const Tensor&, size_t) { ++results; });
    return results == fresh.size();
  }

  void run_shapes(const c10::OperatorHandle& op, Device device, Aliases& aliases, torch::jit::Stack& host,
                  c10::ArrayRef<c10::IValue> arguments) {
    const Operator& known = *known_;
    if (known.only_writes) {
      bool grows = false;
      each_tensor(arguments, [&](const Tensor& t, size_t i) { grows |= known.writes[i] && t.numel() == 0; });
      if (grows) {
        call(op, known, host);
        aliases.bring_shapes_back();
      }
      host = returned_arguments(op.schema(), arguments);
      return;
    }
    const std::string key = signature(known, arguments);
    std::vector<std::pair<Tensor, Tensor>> fresh;
    bool found = false;
    if (!known.waits) {
      const std::lock_guard<std::mutex> lock(shapes().mutex);
      const auto place = shapes().known.find(key);
      found = place != shapes().known.end();
      if (found) host = place->second;
    }
    if (!found) {
      // What is in memory may be no argument that a kernel can bear. Where the shape depends on values, they are those of
      // small results.
      if (!known.waits) put_zeros(host, [](const Tensor&) { return true; });
      call(op, known, host);
      host = keep_shapes(key, host);
    }
    wrap(host, aliases, device.index(), fresh);
  }

  // Remembers results without their memory.
  static torch::jit::Stack keep_shapes(const std::string& key, const torch::jit::Stack& results) {
    const auto shape = [](const Tensor& t) {
      if (!t.defined()) return t;
      return cpu_tensor(c10::Storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), c10::DataPtr(nullptr, Device(c10::kCPU)), nullptr, false), t);
    };
    torch::jit::Stack kept;
    for (const c10::IValue& v : results) {
      if (v.isTensor()) {
        kept.emplace_back(shape(v.toTensor()));
      } else if (v.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& t : v.toTensorVector()) list.push_back(shape(t));
        kept.emplace_back(std::move(list));
      } else {
        kept.push_back(v);
      }
    }
    const std::lock_guard<std::mutex> lock(shapes().mutex);
    shapes().known[key] = kept;
    return kept;
  }

  const std::shared_ptr<const Operator> known_;
};

// New memory holds no number that anything could be computed from.
void poison(const Tensor& t) {
  const size_t bytes = t.storage().nbytes();
  const bool counts_only = computed_steps() >= 0;
  if (bytes > 0 && (!counts_only || bytes <= kSmall)) std::memset(real_address(t.storage().data()), counts_only ? 0 : 0xff, bytes);
}

Tensor empty_memory_format(c10::IntArrayRef size, std::optional<c10::ScalarType> kind, std::optional<c10::Layout>,
                           std::optional<Device> device, std::optional<bool> pin, std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::DeviceGuard guard(c10::device_or_default(device));
  Tensor t = at::detail::empty_generic(size, device_allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(kind), format);
  poison(t);
  return t;
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> kind, std::optional<c10::Layout>,
                     std::optional<Device> device, std::optional<bool> pin) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::DeviceGuard guard(c10::device_or_default(device));
  Tensor t = at::detail::empty_strided_generic(size, stride, device_allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(kind));
  poison(t);
  return t;
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef symbolic, std::optional<at::MemoryFormat> format) {
  const auto size = C10_AS_INTARRAYREF_SLOW(symbolic);
  const size_t bytes = at::detail::computeStorageNbytesContiguous(size, self.itemsize(), self.storage_offset());
  const c10::Storage& storage = self.storage();
  if (bytes > storage.nbytes()) {
    auto data = allocate(bytes, self.device().index());
    if (storage.nbytes() > 0) std::memcpy(real_address(data.get()), real_address(storage.data()), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(self, size, stride, offset);
}
Tensor& set_tensor(Tensor& self, const Tensor& source) { return at::native::set_tensor_(self, source); }
Tensor& set_storage(Tensor& self, at::Storage source) { return at::native::set_(self, source); }
Tensor& set_storage_offset(Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::cpu::set_(self, source, offset, size, stride);
}
Tensor& set_nothing(Tensor& self) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh_storage(0, self.device().index()));
  self.unsafeGetTensorImpl()->set_sizes_contiguous({0});
  return self;
}
void record_tensor(Tensor& self, c10::Stream stream) { record_stream(self.storage().data_ptr(), stream); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty_memory_format);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("resize_", resize_);
  m.impl("as_strided", as_strided);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
  m.impl("set_", set_nothing);
  m.impl("record_stream", record_tensor);
}

void add_kernel(torch::Library& library, const char* full, bool unchecked) {
  const std::string text = full;
  const size_t dot = text.find('.');
  const c10::OperatorName name(text.substr(0, dot), dot == std::string::npos ? "" : text.substr(dot + 1));
  const auto op = c10::Dispatcher::singleton().findSchema(name);
  if (!op) return;
  library.impl(full + text.find("::") + 2,
               torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(std::make_shared<const Operator>(*op, unchecked))));
}

void register_operators() {
  static const std::set<std::string> own{"aten::empty.memory_format", "aten::empty_strided", "aten::_local_scalar_dense",
      "aten::resize_", "aten::as_strided", "aten::set_.source_Tensor", "aten::set_.source_Storage",
      "aten::set_.source_Storage_storage_offset", "aten::set_", "aten::record_stream"};
  static auto* library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const KnownOperator& known : kKnown) {
    if (own.count(known.name) == 0) add_kernel(*library, known.name, known.unchecked);
  }
  // libtorch composes it of cuDNN's and others; here it is one kernel, as its backward pass is there.
  add_kernel(*library, "aten::convolution", false);
  static auto* vision = new torch::Library(torch::Library::IMPL, "torchvision", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const char* name : {"torchvision::nms", "torchvision::roi_align", "torchvision::_roi_align_backward"}) add_kernel(*vision, name, false);
}

}  // namespace

Tensor host_alias(const Tensor& t) { return t.is_cuda() ? cpu_tensor(host_storage(t.storage()), t) : t; }

}  // namespace sim
