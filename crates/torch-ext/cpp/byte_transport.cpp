// A process group whose bytes are moved by functions of Rust; arithmetic and order of summation are decided here.
#include "byte_transport.h"

#include "bridge.h"
#include "process_group.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace fnet {
namespace {

using Clock = std::chrono::steady_clock;

// Bytes that travel at once: bounds the memory beside the tensor, and stays below the largest count of MPI.
constexpr int64_t kPieceBytes = 64 << 20;

// A collective that is done when its call returns.
class Done : public c10d::Work {
 public:
  Done(int rank, c10d::OpType type, const c10::ListTypePtr& future_type, c10::IValue value)
      : Work(rank, type), future_(c10::make_intrusive<c10::ivalue::Future>(future_type)) {
    future_->markCompleted(std::move(value));
    finish();
  }

  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

at::Tensor combine(const at::Tensor& a, const at::Tensor& b, const c10d::ReduceOp& op) {
  switch (op) {
    case c10d::ReduceOp::SUM: return at::add(a, b);
    case c10d::ReduceOp::MIN: return at::minimum(a, b);
    case c10d::ReduceOp::MAX: return at::maximum(a, b);
    default: throw InvalidArgument("all-reduce by a transport knows sum, minimum and maximum only");
  }
}

uint8_t* bytes_of(const at::Tensor& tensor) { return static_cast<uint8_t*>(tensor.data_ptr()); }

// The values in the order of memory, as one row over the same memory.
at::Tensor row_of(const at::Tensor& tensor) {
  if (!tensor.device().is_cpu()) {
    throw InvalidArgument("a transport moves tensors of the CPU only, and this one is on " + tensor.device().str());
  }
  if (!tensor.is_non_overlapping_and_dense()) {
    throw InvalidArgument("a collective needs a tensor without gaps or overlaps in memory: make it contiguous");
  }
  return at::from_blob(tensor.data_ptr(), {tensor.numel()}, tensor.options().requires_grad(false));
}

// One collective: its deadline, its buffers, and what to say when it fails.
class Call {
 public:
  Call(std::string what, std::chrono::milliseconds timeout)
      : what_(std::move(what)), timeout_(timeout), end_(Clock::now() + timeout) {}

  // A buffer that the transport may use until the call is over.
  void keep(const at::Tensor& tensor) { buffers_.push_back(tensor); }

  // Time that is left, in milliseconds; 1 where there is none, which the transport finds used up.
  int64_t left() const {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end_ - Clock::now()).count();
    return std::max<int64_t>(left, 1);
  }

  // Throws what the transport returned, if anything. The buffers are never freed then: bytes may still arrive.
  void check(char* message) {
    if (message == nullptr) return;
    const std::string why(message);
    std::free(message);
    new std::vector<at::Tensor>(std::move(buffers_));
    const double seconds = std::chrono::duration<double>(timeout_).count();
    throw c10::DistBackendError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)},
                                c10::str(what_, " with a deadline of ", seconds, " s: ", why));
  }

 private:
  std::string what_;
  std::chrono::milliseconds timeout_;
  Clock::time_point end_;
  std::vector<at::Tensor> buffers_;
};

class ByteTransportBackend : public c10d::Backend {
 public:
  ByteTransportBackend(std::string name, const FnetByteTransport& transport, int rank, int size, std::chrono::milliseconds timeout)
      : Backend(rank, size), name_(std::move(name)), transport_(transport), timeout_(timeout) {}

  ~ByteTransportBackend() override { transport_.free(transport_.state); }

  const std::string getBackendName() const override { return name_; }

  void setTimeout(std::chrono::milliseconds timeout) override { timeout_ = timeout; }

  // Sums in the order of ranks, wherever a value lies in the tensor: part r of it is summed by rank r and then given
  // to all.
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    const c10::NoGradGuard no_grad;
    const at::Tensor row = row_of(single(tensors));
    Call call = begin("all-reduce", row.nbytes(), options.timeout);
    call.keep(tensors[0]);
    for_pieces(row, [&](const at::Tensor& piece) { reduce(call, piece, options.reduceOp); });
    return done(c10d::OpType::ALLREDUCE, tensors);
  }

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override {
    const at::Tensor row = row_of(single(tensors));
    Call call = begin("broadcast", row.nbytes(), options.timeout);
    call.keep(tensors[0]);
    for_pieces(row, [&](const at::Tensor& piece) {
      call.check(transport_.broadcast(transport_.state, bytes_of(piece), piece.nbytes(),
                                    static_cast<int32_t>(options.rootRank), call.left()));
    });
    return done(c10d::OpType::BROADCAST, tensors);
  }

  c10::intrusive_ptr<c10d::Work> allgather(std::vector<std::vector<at::Tensor>>& outputs,
                                           std::vector<at::Tensor>& inputs,
                                           const c10d::AllgatherOptions& options) override {
    const c10::NoGradGuard no_grad;
    const at::Tensor row = row_of(single(inputs));
    std::vector<at::Tensor> targets;
    for (const at::Tensor& output : single(outputs)) {
      targets.push_back(row_of(output));
      if (targets.back().numel() != row.numel() || targets.back().scalar_type() != row.scalar_type()) {
        throw InvalidArgument("all-gather into a tensor of another size or type than the input");
      }
    }
    if (static_cast<int>(targets.size()) != getSize()) throw InvalidArgument("all-gather needs one output per rank");
    Call call = begin("all-gather", row.nbytes(), options.timeout);
    call.keep(inputs[0]);
    int64_t start = 0;
    for_pieces(row, [&](const at::Tensor& piece) {
      const at::Tensor gathered = at::empty({getSize(), piece.numel()}, piece.options());
      call.keep(gathered);
      call.check(transport_.all_gather(transport_.state, bytes_of(piece), piece.nbytes(), bytes_of(gathered), call.left()));
      for (int rank = 0; rank < getSize(); ++rank) {
        targets[rank].narrow(0, start, piece.numel()).copy_(gathered[rank]);
      }
      start += piece.numel();
    });
    const auto type = c10::ListType::create(c10::ListType::create(c10::TensorType::get()));
    return c10::make_intrusive<Done>(getRank(), c10d::OpType::ALLGATHER, type, c10::IValue(outputs));
  }

  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override {
    Call call = begin("barrier", 0, options.timeout);
    call.check(transport_.barrier(transport_.state, call.left()));
    std::vector<at::Tensor> nothing;
    return done(c10d::OpType::BARRIER, nothing);
  }

  void abort() override { transport_.abort(transport_.state); }

  void shutdown() override {
    Call call = begin("shutdown", 0, timeout_);
    call.check(transport_.shutdown(transport_.state));
  }

 private:
  Call begin(const char* what, size_t bytes, std::chrono::milliseconds timeout) {
    const auto deadline = timeout == c10d::kUnsetTimeout ? timeout_.load() : timeout;
    return {c10::str(name_, " ", what, " number ", ++number_, " (", bytes, " bytes) on rank ", getRank(), " of ",
                     getSize()),
            deadline};
  }

  template <class T>
  static T& single(std::vector<T>& list) {
    if (list.size() != 1) throw InvalidArgument("a transport takes one tensor at a time");
    return list[0];
  }

  template <class Body>
  static void for_pieces(const at::Tensor& row, Body&& body) {
    const int64_t longest = kPieceBytes / row.element_size();
    for (int64_t start = 0; start < row.numel(); start += longest) {
      body(row.narrow(0, start, std::min(longest, row.numel() - start)));
    }
  }

  void reduce(Call& call, const at::Tensor& piece, const c10d::ReduceOp& op) {
    const int64_t count = piece.numel();
    const int64_t part = (count + getSize() - 1) / getSize();
    const at::Tensor padded = at::zeros({part * getSize()}, piece.options());
    padded.narrow(0, 0, count).copy_(piece);
    const at::Tensor received = at::empty({getSize(), part}, piece.options());
    call.keep(padded);
    call.keep(received);
    const size_t bytes = part * piece.element_size();
    call.check(transport_.all_to_all(transport_.state, bytes_of(padded), bytes, bytes_of(received), call.left()));
    at::Tensor sum = received[0];
    for (int rank = 1; rank < getSize(); ++rank) sum = combine(sum, received[rank], op);
    call.keep(sum);
    call.check(transport_.all_gather(transport_.state, bytes_of(sum), bytes, bytes_of(padded), call.left()));
    piece.copy_(padded.narrow(0, 0, count));
  }

  c10::intrusive_ptr<c10d::Work> done(c10d::OpType type, std::vector<at::Tensor>& tensors) {
    return c10::make_intrusive<Done>(getRank(), type, c10::ListType::create(c10::TensorType::get()),
                                     c10::IValue(tensors));
  }

  const std::string name_;
  const FnetByteTransport transport_;
  std::atomic<std::chrono::milliseconds> timeout_;
  std::atomic<int64_t> number_{0};
};

}  // namespace
}  // namespace fnet

// A group whose tensors of the CPU are moved by `transport`, which it owns from here on, also if this fails.
extern "C" FnetError* fnet_byte_transport_group_new(FnetStore* store, const char* name, const FnetByteTransport* transport, int rank,
                                             int size, int64_t timeout_ms, FnetGroup** out) {
  return fnet::guarded(
      [&] {
        auto backend = c10::make_intrusive<fnet::ByteTransportBackend>(name, *transport, rank, size,
                                                                 std::chrono::milliseconds(timeout_ms));
        auto group = c10::make_intrusive<c10d::ProcessGroup>(store->store, rank, size);
        group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
        group->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::CUSTOM, backend);
        *out = new FnetGroup{group};
      },
      FnetErrorKind::kCollective);
}
