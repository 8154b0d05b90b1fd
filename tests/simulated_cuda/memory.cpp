// Memory of the devices. Each has a range of addresses that nobody may touch, which tensors carry, and a second one at a
// fixed distance in which kernels work: host code that follows a device's address ends at once.
#include "sim.h"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <execinfo.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

namespace sim {

bool fault_at_allocation();
[[noreturn]] void throw_code(int code);
// Streams' lock and orders; see streams.cpp.
void check_free(Block& block);

namespace {

constexpr size_t kRange = size_t{1} << 37;
constexpr size_t kGranularity = 512;
// Freed memory above this is handed back to the system.
constexpr size_t kKeep = size_t{512} << 20;

struct Card {
  std::mutex mutex;
  uintptr_t next = 0, end = 0;
  size_t limit = 0, kept = 0;
  std::map<std::pair<int, size_t>, std::vector<uintptr_t>> free;  // by home stream and size
  c10::CachingDeviceAllocator::DeviceStats stats;
};

struct Memory {
  uintptr_t real = 0, tensors = 0;
  int gpus[SIM_MAX_GPUS];
  int count;
  Card cards[SIM_MAX_GPUS];

  Memory() : count(sim_visible(gpus)) {
    const auto reserve = [](int protection) {
      void* p = mmap(nullptr, kRange * SIM_MAX_GPUS, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) die("no room for the devices' addresses");
      return reinterpret_cast<uintptr_t>(p);
    };
    real = reserve(PROT_READ | PROT_WRITE);
    madvise(reinterpret_cast<void*>(real), kRange * SIM_MAX_GPUS, MADV_DONTDUMP);
    tensors = reserve(PROT_NONE);
    for (int i = 0; i < count; ++i) {
      cards[i].next = real + i * kRange;
      cards[i].end = cards[i].next + kRange;
      cards[i].limit = sim_gpu(gpus[i]).bytes;
    }
  }
  bool has(const void* p) const {
    const auto address = reinterpret_cast<uintptr_t>(p);
    return address >= tensors && address < tensors + kRange * SIM_MAX_GPUS;
  }
};

Memory& memory() {
  static auto* one = new Memory();
  return *one;
}

constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  check_free(*block);
  unpin(block);
}

void no_block(void*) {}

thread_local DeviceIndex device_of_thread = 0;
// The device that this process has chosen for itself.
std::atomic<int> home_device{-1};

}  // namespace

bool is_device_address(const void* address) { return memory().has(address); }
int device_of_address(const void* address) {
  return static_cast<int>((reinterpret_cast<uintptr_t>(address) - memory().tensors) / kRange);
}
void* real_address(const void* p) {
  if (!is_device_address(p)) return const_cast<void*>(p);
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) - memory().tensors + memory().real);
}
// Whether kernels work there, rather than the host.
bool is_work_memory(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address >= memory().real && address < memory().real + kRange * SIM_MAX_GPUS;
}
int device_count() { return memory().count; }
int card_of(DeviceIndex device) { return sim_card(memory().gpus[device]); }
DeviceIndex current_device() { return device_of_thread; }

// An exclusive card takes one process at a time.
static void take_card(int gpu) {
  if (setting("FNET_SIM_EXCLUSIVE", 0) == 0) return;
  static std::atomic<bool> taken[SIM_MAX_GPUS];
  if (taken[gpu].exchange(true)) return;
  const std::string path = std::string(sim_text("TMPDIR", "/tmp")) + "/fnet-sim-" + sim_gpu(gpu).uuid + ".lock";
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (file >= 0 && flock(file, LOCK_EX | LOCK_NB) != 0) throw_code(46);
}

void use_device(DeviceIndex device) {
  TORCH_CHECK(device >= 0 && device < device_count(), "CUDA error: invalid device ordinal");
  int none = -1;
  if (home_device.compare_exchange_strong(none, device)) take_card(memory().gpus[device]);
  device_of_thread = device;
}

void set_thread_device(DeviceIndex device) { device_of_thread = device; }

void check_device(DeviceIndex device, const char* what) {
  static const bool any = setting("FNET_SIM_ANY_DEVICE", 0) != 0;
  const int home = home_device.load();
  if (any || home < 0 || device == home) return;
  die(std::string(what) + " on cuda:" + std::to_string(device) + " in a process whose device is cuda:" + std::to_string(home) +
      ": a thread has not set its device");
}

c10::DataPtr allocate(size_t bytes, DeviceIndex index) {
  check_usable();
  check_device(index, "an allocation");
  const Device device(c10::kCUDA, index);
  if (bytes == 0) return {nullptr, nullptr, &no_block, device};
  const size_t size = (bytes + kGranularity - 1) / kGranularity * kGranularity;
  const int stream = current_stream(index);
  Card& card = memory().cards[index];
  const std::lock_guard<std::mutex> lock(card.mutex);
  auto& now = card.stats.allocated_bytes[kAll];
  if (fault_at_allocation() || static_cast<size_t>(now.current) + size > card.limit) {
    ++card.stats.num_ooms;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes, " bytes. GPU ", static_cast<int>(index),
                     " has a total capacity of ", card.limit, " bytes, of which ", now.current, " are in use.");
  }
  uintptr_t address = 0;
  auto kept = card.free.find({stream, size});
  if (kept != card.free.end() && !kept->second.empty()) {
    address = kept->second.back();
    kept->second.pop_back();
    card.kept -= size;
  } else {
    if (card.next + size > card.end) die("the addresses of a device are used up");
    address = card.next;
    card.next += size;
  }
  now.increase(size);
  auto& reserved = card.stats.reserved_bytes[kAll];
  if (now.current > reserved.current) reserved.increase(now.current - reserved.current);
  auto* block = new Block{address, size, index, stream};
  return {reinterpret_cast<void*>(address - memory().real + memory().tensors), block, &free_block, device};
}

Block* block_of(const c10::Storage& storage) {
  const c10::DataPtr& data = storage.data_ptr();
  return data.get_deleter() == &free_block ? static_cast<Block*>(data.get_context()) : nullptr;
}

void pin(Block* block) { ++block->pins; }

void unpin(Block* block) {
  if (--block->pins > 0) return;
  Card& card = memory().cards[block->device];
  const std::lock_guard<std::mutex> lock(card.mutex);
  card.stats.allocated_bytes[kAll].decrease(block->size);
  card.kept += block->size;
  if (card.kept > kKeep && block->size >= (1u << 20)) {
    const uintptr_t begin = (block->address + 4095) & ~uintptr_t{4095};
    madvise(reinterpret_cast<void*>(begin), (block->address + block->size - begin) & ~size_t{4095}, MADV_DONTNEED);
  }
  card.free[{block->home, block->size}].push_back(block->address);
  delete block;
}

namespace {

struct DeviceAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override { return sim::allocate(bytes, device_of_thread); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(real_address(to), real_address(from), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    check_usable();
    for (int i = 0; i < device_count(); ++i) {
      Card& card = memory().cards[i];
      const std::lock_guard<std::mutex> lock(card.mutex);
      auto& reserved = card.stats.reserved_bytes[kAll];
      reserved.decrease(reserved.current - card.stats.allocated_bytes[kAll].current);
    }
  }
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override;
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex i) override {
    const std::lock_guard<std::mutex> lock(memory().cards[i].mutex);
    return memory().cards[i].stats;
  }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex i) override {
    Card& card = memory().cards[i];
    const std::lock_guard<std::mutex> lock(card.mutex);
    card.stats.allocated_bytes[kAll].reset_peak();
    card.stats.reserved_bytes[kAll].reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex i) override {
    check_usable();
    count(Count::kOther, "cudaMemGetInfo");
    Card& card = memory().cards[i];
    const std::lock_guard<std::mutex> lock(card.mutex);
    return {card.limit - card.stats.reserved_bytes[kAll].current, card.limit};
  }
};

DeviceAllocator& allocator() {
  static auto* one = new DeviceAllocator();
  return *one;
}

// Pinned host memory. As libtorch's own allocator does it, memory that is freed while a copy from or to it is outstanding
// is not used again before that copy is done.
struct PinnedAllocator final : at::HostAllocator {
  std::mutex mutex;
  std::map<uintptr_t, size_t> blocks;
  std::vector<void*> freed;

  c10::DataPtr allocate(size_t bytes) override {
    check_usable();
    void* p = bytes == 0 ? nullptr : std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    const std::lock_guard<std::mutex> lock(mutex);
    if (p != nullptr) blocks[reinterpret_cast<uintptr_t>(p)] = bytes;
    count(Count::kOther, "pinned allocations");
    return {p, p, &drop, Device(c10::kCPU)};
  }
  static void drop(void* p);
  bool owns(const void* p) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto next = blocks.upper_bound(reinterpret_cast<uintptr_t>(p));
    if (next == blocks.begin()) return false;
    const auto& [begin, size] = *std::prev(next);
    return reinterpret_cast<uintptr_t>(p) < begin + size;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool record_event(void* p, void*, c10::Stream) override { return owns(p); }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

PinnedAllocator& pinned() {
  static auto* one = new PinnedAllocator();
  return *one;
}

struct sigaction before_fault;

void on_fault(int number, siginfo_t* info, void*) {
  if (is_device_address(info->si_addr)) {
    char text[200];
    const int size = std::snprintf(text, sizeof text, "simulated CUDA: the host touched memory of cuda:%d at %p\n",
                                   device_of_address(info->si_addr), info->si_addr);
    (void)!write(2, text, static_cast<size_t>(size));
    void* frames[48];
    backtrace_symbols_fd(frames, backtrace(frames, 48), 2);
  }
  // The instruction is tried again, under the handler that was there before.
  sigaction(number, &before_fault, nullptr);
}

void guard_memory() {
  struct sigaction action {};
  action.sa_sigaction = &on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &before_fault);
}

}  // namespace

// Frees what nothing copies from or to any more. `busy` says which still is.
void free_pinned(const std::function<bool(uintptr_t, size_t)>& busy) {
  auto& all = pinned();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<void*> left;
  for (void* p : all.freed) {
    const auto begin = reinterpret_cast<uintptr_t>(p);
    if (busy(begin, all.blocks[begin])) {
      left.push_back(p);
    } else {
      all.blocks.erase(begin);
      std::free(p);
    }
  }
  all.freed = std::move(left);
}

bool is_pinned(const void* host) { return pinned().owns(host); }
c10::Allocator* device_allocator() { return &allocator(); }

}  // namespace sim
