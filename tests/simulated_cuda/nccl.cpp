// Collectives between the simulated GPUs of one machine, by shared memory.
//
// As NCCL's: a stream of their own; futures that are complete when a collective is enqueued; results that are NaN until the
// stream has come there; nothing that tells of a peer that has died, only waiting; an abort that ends what runs.
//
// FNET_SIM_NCCL is a list of KIND, KIND@N or KIND@N/RANK: `silent@N` (that rank takes no part from collective N on),
// `error@N` (NCCL finds an error there; getError tells of it), and for abort `abort-slow` (3 s), `abort-hangs` and
// `abort-frees` (peers that read what it frees get an illegal access).
#include "sim.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

namespace c10d {

// What one rank gives to a collective.
struct Collective {
  OpType type;
  ReduceOp::RedOpType op = ReduceOp::SUM;
  int root = 0;
  std::vector<at::Tensor> inputs, outputs;  // as rows that the host may touch
};

constexpr int kMaxRanks = 64;
constexpr size_t kChunk = size_t{1} << 20;

// What must be the same on all ranks.
struct Signature {
  uint32_t type, op, root, kind;
  uint64_t bytes;
  bool operator==(const Signature& other) const {
    return type == other.type && op == other.op && root == other.root && kind == other.kind && bytes == other.bytes;
  }
};

struct RankPage {
  std::atomic<uint64_t> posted, taken;  // chunks
  std::atomic<uint32_t> freed;
  Signature signature;
  alignas(64) char data[kChunk];
};

struct Rule {
  std::string kind;
  int64_t at = -1;
};

inline std::vector<Rule> rules(int rank) {
  std::vector<Rule> list;
  std::string text = sim_text("FNET_SIM_NCCL", "");
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t slash = item.find('/'), at = item.find('@');
    if (slash != std::string::npos && std::atoi(item.c_str() + slash + 1) != rank) continue;
    list.push_back({item.substr(0, std::min(at, slash)), at == std::string::npos ? -1 : std::atoll(item.c_str() + at + 1)});
  }
  return list;
}

inline std::string text_of(const Signature& s) {
  return opTypeToString(static_cast<OpType>(s.type)) + " of " + std::to_string(s.bytes) + " bytes of " +
         c10::toString(static_cast<at::ScalarType>(s.kind));
}

// One rank's side; a thread of its own carries out what the stream has come to, in order.
class Communicator {
 public:
  struct Job {
    Collective collective;
    std::atomic<bool> done{false};
  };

  Communicator(const c10::intrusive_ptr<Store>& store, int rank, int size, at::Device device)
      : rank_(rank), size_(size), device_(device), rules_(rules(rank)) {
    TORCH_CHECK(size <= kMaxRanks, "NCCL: more than ", kMaxRanks, " simulated ranks");
    refuse_a_card_twice(store);
    const size_t bytes = sizeof(RankPage) * static_cast<size_t>(size);
    int file = -1;
    if (rank == 0) {
      char path[] = "/dev/shm/fnet-sim-XXXXXX";
      file = mkstemp(path);
      TORCH_CHECK(file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0, "NCCL: no shared memory");
      const std::string name = path;
      store->set("memory", std::vector<uint8_t>(name.begin(), name.end()));
    } else {
      const auto name = store->get("memory");
      file = open(std::string(name.begin(), name.end()).c_str(), O_RDWR | O_CLOEXEC);
      TORCH_CHECK(file >= 0, "NCCL: the shared memory of rank 0 is gone");
    }
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    TORCH_CHECK(mapped != MAP_FAILED, "NCCL: no shared memory");
    close(file);
    pages_ = static_cast<RankPage*>(mapped);
    // When all have opened it, nobody needs the name any more.
    if (store->add("opened", 1) == size) {
      const auto name = store->get("memory");
      unlink(std::string(name.begin(), name.end()).c_str());
    }
    stream_ = c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(device, false);
  }

  const Rule* rule(const char* kind) const {
    for (const Rule& r : rules_) {
      if (r.kind == kind) return &r;
    }
    return nullptr;
  }

  c10::Stream stream() const { return stream_; }
  at::Device device() const { return device_; }

  void push(std::shared_ptr<Job> job) {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
    if (!runs_) {
      runs_ = true;
      std::thread([this] { run(); }).detach();
    }
    changed_.notify_all();
  }

  bool has_failed() const { return failed_; }

  void abort() {
    if (rule("abort-hangs") != nullptr) {
      for (;;) pause();
    }
    if (rule("abort-slow") != nullptr) std::this_thread::sleep_for(std::chrono::seconds(3));
    if (rule("abort-frees") != nullptr) pages_[rank_].freed = 1;
    aborted_ = true;
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.notify_all();
    changed_.wait(lock, [this] { return jobs_.empty(); });
  }

 private:
  // As NCCL, which tells cards apart by host and bus.
  void refuse_a_card_twice(const c10::intrusive_ptr<Store>& store) const {
    const std::string own = std::string(sim_text("NCCL_HOSTID", "")) + "/" + std::to_string(sim::card_of(device_.index()));
    store->set("card" + std::to_string(rank_), std::vector<uint8_t>(own.begin(), own.end()));
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      const auto other = store->get("card" + std::to_string(r));
      if (std::string(other.begin(), other.end()) != own) continue;
      C10_THROW_ERROR(DistBackendError, c10::str("NCCL error in: ProcessGroupNCCL.cpp:1, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version "
                                                 "2.28.9\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU "
                                                 "detected : rank ", rank_, " and rank ", r, " both on CUDA device ", sim::card_of(device_.index()), "000"));
    }
  }

  // Waits for `condition`; false if the collective is aborted.
  template <class Condition>
  bool until(const Condition& condition) {
    for (int turn = 0; !condition(); ++turn) {
      if (aborted_) return false;
      for (int r = 0; r < size_; ++r) {
        if (r != rank_ && pages_[r].freed != 0) sim::break_device(700);
      }
      if (turn > 50) std::this_thread::sleep_for(std::chrono::microseconds(turn > 1000 ? 500 : 50));
    }
    return true;
  }

  void run() {
    for (int64_t number = 1;; ++number) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !jobs_.empty(); });
      const auto job = jobs_.front();
      lock.unlock();
      const Rule *silent = rule("silent"), *error = rule("error");
      if (error != nullptr && number >= error->at) failed_ = true;
      const bool takes_part = !failed_ && !(silent != nullptr && number >= silent->at);
      if (takes_part) {
        carry_out(job->collective);
      } else {
        until([] { return false; });
      }
      job->done = true;
      sim::wake_streams();
      lock.lock();
      jobs_.pop_front();
      changed_.notify_all();
    }
  }

  bool carry_out(Collective& c) {
    const at::Tensor& input = c.inputs[0];
    const Signature own{static_cast<uint32_t>(c.type), static_cast<uint32_t>(c.op), static_cast<uint32_t>(c.root),
                        static_cast<uint32_t>(input.scalar_type()), input.nbytes()};
    for (size_t tensor = 0; tensor < c.inputs.size(); ++tensor) {
      const auto bytes = static_cast<int64_t>(c.inputs[tensor].nbytes());
      for (int64_t begin = 0; begin < bytes || (begin == 0 && bytes == 0); begin += static_cast<int64_t>(kChunk)) {
        if (!exchange(c, tensor, own, begin, std::min<int64_t>(bytes - begin, kChunk))) return false;
      }
    }
    return true;
  }

  bool exchange(Collective& c, size_t tensor, const Signature& own, int64_t begin, int64_t bytes) {
    RankPage& page = pages_[rank_];
    const auto all = [&](const auto& condition) {
      return until([&] {
        for (int r = 0; r < size_; ++r) {
          if (!condition(pages_[r])) return false;
        }
        return true;
      });
    };
    const uint64_t turn = page.posted + 1;
    // Who is still at the last chunk reads this page.
    if (!all([&](const RankPage& p) { return p.taken + 1 >= turn; })) return false;
    page.signature = own;
    std::memcpy(page.data, static_cast<const char*>(c.inputs[tensor].const_data_ptr()) + begin, static_cast<size_t>(bytes));
    page.posted = turn;
    if (!all([&](const RankPage& p) { return p.posted >= turn; })) return false;
    for (int r = 0; r < size_; ++r) {
      if (pages_[r].signature == own) continue;
      sim::die("the ranks issue collectives in different orders: rank " + std::to_string(rank_) + " is at " + text_of(own) + ", rank " +
               std::to_string(r) + " at " + text_of(pages_[r].signature));
    }
    take(c, tensor, begin, bytes);
    page.taken = turn;
    return true;
  }

  at::Tensor values(int rank, const at::Tensor& like, int64_t bytes) const {
    return at::from_blob(pages_[rank].data, {bytes / like.element_size()}, like.options());
  }

  void take(Collective& c, size_t tensor, int64_t begin, int64_t bytes) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor& like = c.inputs[tensor];
    const auto part = [&](at::Tensor& output) {
      return at::from_blob(static_cast<char*>(output.mutable_data_ptr()) + begin, {bytes / like.element_size()}, like.options());
    };
    if (c.type == OpType::ALLGATHER) {
      for (int r = 0; r < size_; ++r) part(c.outputs[static_cast<size_t>(r)]).copy_(values(r, like, bytes));
      return;
    }
    if (c.type == OpType::BROADCAST) {
      part(c.outputs[tensor]).copy_(values(c.root, like, bytes));
      return;
    }
    at::Tensor sum = values(0, like, bytes).clone();
    for (int r = 1; r < size_; ++r) {
      const at::Tensor next = values(r, like, bytes);
      switch (c.op) {
        case ReduceOp::MIN: sum = at::minimum(sum, next); break;
        case ReduceOp::MAX: sum = at::maximum(sum, next); break;
        default: sum.add_(next);
      }
    }
    if (c.op == ReduceOp::AVG) sum.div_(size_);
    part(c.outputs[tensor]).copy_(sum);
  }

  const int rank_, size_;
  const at::Device device_;
  const std::vector<Rule> rules_;
  RankPage* pages_ = nullptr;
  c10::Stream stream_{c10::Stream::DEFAULT, at::Device(at::kCPU)};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> jobs_;
  bool runs_ = false;
  std::atomic<bool> aborted_{false}, failed_{false};
};

namespace {

// The work of a collective: `wait` makes the current stream wait, and the host only if it is given a deadline.
class SimulatedWork final : public Work {
 public:
  SimulatedWork(int rank, OpType type, std::shared_ptr<Communicator> communicator, sim::Position end, std::vector<at::Tensor> tensors,
                c10::intrusive_ptr<c10::ivalue::Future> future)
      : Work(rank, type), communicator_(std::move(communicator)), end_(end), tensors_(std::move(tensors)), future_(std::move(future)) {}

  bool isCompleted() override {
    sim::check_usable();
    return sim::is_done(end_);
  }
  bool isSuccess() const override { return sim::is_done(end_) && !communicator_->has_failed(); }
  void synchronize() override {
    sim::check_usable();
    sim::join(sim::current_stream(communicator_->device().index()), end_);
    tensors_.clear();
  }
  bool wait(std::chrono::milliseconds timeout) override {
    synchronize();
    if (timeout == kNoTimeout) return true;
    sim::count(sim::Count::kWait, "collective with a deadline");
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (!isCompleted()) {
      if (std::chrono::steady_clock::now() > deadline) {
        C10_THROW_ERROR(DistBackendError, c10::str("Watchdog caught collective operation timeout: WorkNCCL(OpType=", opTypeToString(retrieveOpType()),
                                                   ", Timeout(ms)=", timeout.count(), ") ran too long"));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    sim::wait_for(end_);
    if (communicator_->has_failed()) {
      C10_THROW_ERROR(DistBackendError, "NCCL communicator encountered error: ncclSystemError: System call (e.g. socket, malloc) or external library call failed");
    }
    return true;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  const std::shared_ptr<Communicator> communicator_;
  const sim::Position end_;
  std::vector<at::Tensor> tensors_;  // kept until they are waited for
  const c10::intrusive_ptr<c10::ivalue::Future> future_;
};

// The values in the order of memory, as a row that the host may touch.
at::Tensor row(const at::Tensor& t, at::Device device) {
  TORCH_CHECK(t.device() == device, "NCCL: a tensor on ", t.device(), " in a group bound to ", device);
  TORCH_CHECK(t.is_non_overlapping_and_dense(), "NCCL: Tensors must be contiguous");
  return at::from_blob(static_cast<char*>(sim::real_address(t.storage().data())) + t.storage_offset() * t.element_size(), {t.numel()},
                       t.options().device(at::kCPU).requires_grad(false));
}

std::vector<at::Tensor> rows(const std::vector<at::Tensor>& tensors, at::Device device) {
  std::vector<at::Tensor> list;
  for (const at::Tensor& t : tensors) list.push_back(row(t, device));
  return list;
}

}  // namespace

ProcessGroupNCCL::ProcessGroupNCCL(c10::intrusive_ptr<Store> store, int rank, int size, c10::intrusive_ptr<Options> options)
    : Backend(rank, size), store_(std::move(store)), options_(std::move(options)) {}

// The communicator's thread may be at the end of a collective.
ProcessGroupNCCL::~ProcessGroupNCCL() = default;

void ProcessGroupNCCL::eagerConnectSingleDevice(at::Device device) {
  sim::check_device(device.index(), "NCCL");
  if (!communicator_) communicator_ = std::shared_ptr<Communicator>(new Communicator(store_, rank_, size_, device), [](Communicator*) {});
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::start(Collective collective, std::vector<at::Tensor> tensors, c10::IValue value) {
  sim::check_usable();
  TORCH_CHECK(!tensors.empty(), "NCCL: no tensor");
  const at::Device device = tensors[0].device();
  eagerConnectSingleDevice(device);
  const OpType type = collective.type;
  sim::count(sim::Count::kOther, "collectives: " + opTypeToString(type));
  const int stream = sim::stream_number(communicator_->stream());
  sim::join(stream, sim::last_of(sim::current_stream(device.index())));
  std::vector<sim::Access> accesses;
  for (const at::Tensor& t : tensors) {
    sim::Block* block = sim::block_of(t.storage());
    bool is_new = block != nullptr;
    for (const auto& access : accesses) is_new = is_new && access.block != block;
    if (is_new) accesses.push_back({block, true});
  }
  auto job = std::make_shared<Communicator::Job>();
  job->collective = std::move(collective);
  const auto communicator = communicator_;
  const sim::Position end = sim::enqueue_until(
      stream, "a collective", accesses,
      [job, communicator] {
        // What comes in is NaN until it is there; of a sum in place the input is taken first.
        for (auto& t : job->collective.inputs) t = t.clone();
        for (auto& t : job->collective.outputs) std::memset(t.mutable_data_ptr(), 0xff, t.nbytes());
        communicator->push(job);
      },
      [job] { return job->done.load(); });
  auto future = c10::make_intrusive<c10::ivalue::Future>(value.type(), std::vector<c10::Device>{device});
  const c10::impl::VirtualGuardImpl guard(at::kCUDA);
  const c10::Stream before = guard.exchangeStream(communicator_->stream());
  future->markCompleted(value);
  guard.exchangeStream(before);
  return c10::make_intrusive<SimulatedWork>(rank_, type, communicator_, end, std::move(tensors), std::move(future));
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::broadcast(std::vector<at::Tensor>& tensors, const BroadcastOptions& options) {
  const auto data = rows(tensors, tensors.at(0).device());
  return start({OpType::BROADCAST, ReduceOp::SUM, static_cast<int>(options.rootRank), data, data}, tensors, tensors);
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::allreduce(std::vector<at::Tensor>& tensors, const AllreduceOptions& options) {
  const auto data = rows(tensors, tensors.at(0).device());
  return start({OpType::ALLREDUCE, options.reduceOp.op_, 0, data, data}, tensors, tensors);
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::allgather(std::vector<std::vector<at::Tensor>>& outputs, std::vector<at::Tensor>& inputs,
                                                     const AllgatherOptions&) {
  const at::Device device = inputs.at(0).device();
  std::vector<at::Tensor> all = outputs.at(0);
  all.push_back(inputs[0]);
  return start({OpType::ALLGATHER, ReduceOp::SUM, 0, rows(inputs, device), rows(outputs[0], device)}, all, outputs);
}

c10::intrusive_ptr<Work> ProcessGroupNCCL::barrier(const BarrierOptions&) {
  std::vector<at::Tensor> one{at::zeros({1}, at::TensorOptions(at::kCUDA).dtype(at::kFloat))};
  return allreduce(one, AllreduceOptions());
}

ErrorType ProcessGroupNCCL::getError() { return communicator_ && communicator_->has_failed() ? ErrorType::COMM_ERROR : ErrorType::SUCCESS; }

void ProcessGroupNCCL::abort() {
  if (communicator_) communicator_->abort();
}

// Waits for all that was enqueued, as ncclCommFinalize does.
void ProcessGroupNCCL::shutdown() {
  if (communicator_) sim::wait_for(sim::last_of(sim::stream_number(communicator_->stream())));
}

}  // namespace c10d

// The product's part, as it is.
#include "../../crates/torch-ext/cpp/nccl_unit.cpp"
