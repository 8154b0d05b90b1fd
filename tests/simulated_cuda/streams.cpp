// Streams, events and the order of what runs on them.
//
// What is enqueued runs at once on the caller's thread, unless something before it on its stream is outstanding: a
// collective whose peers have not come, or an event of such a stream. Then it waits in the stream's queue, the host goes
// on, and the device's thread runs it when its turn has come. So a host that waits, waits, and one that polls, polls.
//
// Order is checked by vector clocks: every stream knows how far each other stream has come for certain, by events and by
// waits of the host. Touching memory that another stream has written (or writing what another one reads) without that
// knowledge ends the process, whether or not the values came out right this time.
#include "sim.h"

#include <c10/core/Event.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace sim {

[[noreturn]] void throw_code(int code);
void set_thread_device(DeviceIndex device);

namespace {

struct Task {
  std::function<bool()> ready;  // may be empty
  std::function<void()> run;    // may be empty
  uint64_t number;
};

struct Stream {
  c10::StreamId id = 0;
  DeviceIndex device = 0;
  Clock knows{};
  uint64_t issued = 0, done = 0;
  uint64_t host_joined = 0;
  std::deque<Task> tasks;
  bool stalled = false;  // the moment that is_behind gives has been waited for in vain
  int asked = 0, questions = 0;
};

struct Queues {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Stream> streams;
  std::map<std::pair<int, c10::StreamId>, int> by_id;
  Clock host{};
  uint64_t host_knowledge = 1;
  size_t outstanding = 0;
  bool thread_runs = false;
  bool polls = false;  // the host has asked again and again, and enqueued nothing since

  Queues() { streams.reserve(kMaxStreams); }
};

Queues& queues() {
  static auto* one = new Queues();
  return *one;
}

using Lock = std::unique_lock<std::mutex>;

std::string name_of(int stream) {
  const Stream& s = queues().streams[stream];
  return "stream " + std::to_string(s.id) + " of cuda:" + std::to_string(s.device);
}

int index_of(c10::StreamId id, DeviceIndex device, const Lock&) {
  auto& q = queues();
  const auto [found, is_new] = q.by_id.try_emplace({device, id}, static_cast<int>(q.streams.size()));
  if (is_new) {
    if (q.streams.size() == kMaxStreams) die("more than 64 streams");
    q.streams.emplace_back();
    q.streams.back().id = id;
    q.streams.back().device = device;
  }
  return found->second;
}

void learn(Clock& to, const Clock& from) {
  for (int i = 0; i < kMaxStreams; ++i) to[i] = std::max(to[i], from[i]);
}

// What is enqueued now comes after everything that the host knows of.
void learn_from_host(Stream& s) {
  auto& q = queues();
  if (s.host_joined == q.host_knowledge) return;
  learn(s.knows, q.host);
  s.host_joined = q.host_knowledge;
}

uint64_t issue(int stream, const Lock&) {
  Stream& s = queues().streams[stream];
  learn_from_host(s);
  s.asked = s.questions = 0;
  queues().polls = false;
  return s.knows[stream] = ++s.issued;
}

void check_order(int stream, uint64_t number, const char* what, const std::vector<Access>& accesses) {
  const Clock& knows = queues().streams[stream].knows;
  const auto fail = [&](const char* does, int other, const char* did, const char* by) {
    die(std::string(what) + " on " + name_of(stream) + " " + does + " memory that " + name_of(other) + " " + did + " (" + by +
        "), and nothing makes the one wait for the other: record an event there and wait for it here");
  };
  for (const Access& access : accesses) {
    Block& block = *access.block;
    if (block.written.number > knows[block.written.stream]) {
      fail(access.write ? "writes" : "reads", block.written.stream, "writes", block.writer);
    }
    if (access.write) {
      for (const auto& [other, use] : block.reads) {
        if (use.number > knows[other]) fail("writes", other, "reads", use.what);
      }
    }
  }
  for (const Access& access : accesses) {
    Block& block = *access.block;
    if (access.write) {
      block.reads.clear();
      block.written = {stream, number};
      block.writer = what;
    } else {
      block.reads[stream] = {number, what};
    }
  }
}

void device_thread() {
  auto& q = queues();
  Lock lock(q.mutex);
  for (;;) {
    bool ran = false;
    for (size_t i = 0; i < q.streams.size(); ++i) {
      while (!q.streams[i].tasks.empty()) {
        Task& front = q.streams[i].tasks.front();
        if (front.ready && !front.ready()) break;
        Task task = std::move(front);
        q.streams[i].tasks.pop_front();
        lock.unlock();
        try {
          if (task.run) task.run();
        } catch (const std::exception& error) {
          die(std::string("a kernel failed that ran late: ") + error.what());
        }
        // What it holds may need the lock to be freed.
        task.run = nullptr;
        lock.lock();
        q.streams[i].done = task.number;
        if (q.streams[i].tasks.empty()) q.streams[i].stalled = false;
        --q.outstanding;
        ran = true;
      }
    }
    if (ran) {
      q.changed.notify_all();
    } else if (q.outstanding == 0) {
      q.changed.wait(lock, [&] { return q.outstanding > 0; });
    } else {
      q.changed.wait_for(lock, std::chrono::microseconds(200));
    }
  }
}

void put_off(int stream, Task task, const Lock&) {
  auto& q = queues();
  q.streams[stream].tasks.push_back(std::move(task));
  ++q.outstanding;
  if (!q.thread_runs) {
    q.thread_runs = true;
    std::thread(device_thread).detach();
  }
  q.changed.notify_all();
}

// Waits without holding up others; an error of the device ends it.
void wait_until_done(Lock& lock, int stream, uint64_t number) {
  auto& q = queues();
  while (q.streams[stream].done < number) {
    q.changed.wait_for(lock, std::chrono::milliseconds(20));
    check_usable();
  }
}

void host_learns(const Clock& clock) {
  auto& q = queues();
  learn(q.host, clock);
  ++q.host_knowledge;
  settle_transfers();
}

}  // namespace

void wake_streams() { queues().changed.notify_all(); }

bool is_behind(int stream) {
  auto& q = queues();
  static const auto moment = std::chrono::milliseconds(setting("FNET_SIM_GRACE_MS", 200));
  Lock lock(q.mutex);
  Stream& s = q.streams[stream];
  if (s.done == s.issued) return false;
  if (!s.stalled) {
    s.stalled = !q.changed.wait_for(lock, moment, [&] { return q.streams[stream].done == q.streams[stream].issued; });
    if (q.streams[stream].stalled) count(Count::kOther, "stalls of a stream");
  }
  return q.streams[stream].done != q.streams[stream].issued;
}

Position enqueue(int stream, const char* what, const std::vector<Access>& accesses, const std::function<void()>& now,
                 const std::function<std::function<void()>()>& later, bool* deferred) {
  auto& q = queues();
  Lock lock(q.mutex);
  const bool behind = q.streams[stream].done != q.streams[stream].issued;
  const uint64_t number = issue(stream, lock);
  check_order(stream, number, what, accesses);
  if (deferred != nullptr) *deferred = behind;
  if (behind) {
    std::vector<Block*> blocks;
    for (const Access& access : accesses) {
      pin(access.block);
      blocks.push_back(access.block);
    }
    auto run = later();
    put_off(stream, {nullptr, [run, blocks] {
                       run();
                       for (Block* block : blocks) unpin(block);
                     }, number}, lock);
    return {stream, number};
  }
  lock.unlock();
  const auto finish = [&] {
    lock.lock();
    q.streams[stream].done = number;
    if (q.outstanding > 0) q.changed.notify_all();
  };
  try {
    now();
  } catch (...) {
    finish();
    throw;
  }
  finish();
  return {stream, number};
}

Position enqueue_until(int stream, const char* what, const std::vector<Access>& accesses, std::function<void()> begin,
                       std::function<bool()> ready) {
  Lock lock(queues().mutex);
  const uint64_t first = issue(stream, lock);
  check_order(stream, first, what, accesses);
  std::vector<Block*> blocks;
  for (const Access& access : accesses) {
    pin(access.block);
    blocks.push_back(access.block);
  }
  put_off(stream, {nullptr, std::move(begin), first}, lock);
  const uint64_t last = issue(stream, lock);
  check_order(stream, last, what, accesses);
  put_off(stream, {std::move(ready), [blocks] { for (Block* block : blocks) unpin(block); }, last}, lock);
  return {stream, last};
}

void wait_for(Position p) {
  check_usable();
  auto& q = queues();
  Lock lock(q.mutex);
  wait_until_done(lock, p.stream, p.number);
  Clock clock = q.streams[p.stream].knows;
  clock[p.stream] = p.number;
  host_learns(clock);
}

Position last_of(int stream) {
  const std::lock_guard<std::mutex> lock(queues().mutex);
  return {stream, queues().streams[stream].issued};
}

void mark_written(int stream, const char* what, const std::vector<Access>& accesses) {
  const std::lock_guard<std::mutex> lock(queues().mutex);
  for (const Access& access : accesses) {
    access.block->written = {stream, queues().streams[stream].issued};
    access.block->writer = what;
  }
}

bool is_done(Position p) {
  auto& q = queues();
  Lock lock(q.mutex);
  return q.streams[p.stream].done >= p.number;
}

void join(int stream, Position p) {
  auto& q = queues();
  Lock lock(q.mutex);
  learn_from_host(q.streams[stream]);
  learn(q.streams[stream].knows, q.streams[p.stream].knows);
  q.streams[stream].knows[p.stream] = std::max(q.streams[stream].knows[p.stream], p.number);
  if (stream == p.stream || q.streams[p.stream].done >= p.number) return;
  const uint64_t number = issue(stream, lock);
  put_off(stream, {[p] { return queues().streams[p.stream].done >= p.number; }, nullptr, number}, lock);
}

bool host_knows(Position p) { return queues().host[p.stream] >= p.number; }

// A block is freed: no other stream may use it any more, unless the allocator knows of it.
void check_free(Block& block) {
  auto& q = queues();
  Lock lock(q.mutex);
  learn_from_host(q.streams[block.home]);
  const Clock& knows = q.streams[block.home].knows;
  const auto check = [&](int stream, uint64_t number, const char* what) {
    if (stream == block.home || number <= knows[stream] || block.recorded.count(stream) != 0) return;
    die("memory of " + name_of(block.home) + " was freed while " + name_of(stream) + " may still use it (" + what +
        "): record that stream on the tensor (recordStream), or make the other stream wait before the tensor is dropped");
  };
  for (const auto& [stream, use] : block.reads) check(stream, use.number, use.what);
  if (block.written.number > 0) check(block.written.stream, block.written.number, block.writer);
}

namespace {

thread_local std::map<DeviceIndex, c10::StreamId> stream_of_thread;

c10::StreamId current_id(DeviceIndex device) {
  const auto found = stream_of_thread.find(device);
  return found == stream_of_thread.end() ? 0 : found->second;
}

c10::Stream as_stream(c10::StreamId id, DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, Device(c10::kCUDA, device), id);
}

// libtorch hands out 32 streams per device and priority in turn; those here begin at 1.
c10::StreamId next_stream(DeviceIndex device) {
  static std::atomic<int> next[SIM_MAX_GPUS];
  return 1 + next[device]++ % 32;
}

struct Event {
  Position position;
  Clock clock{};
  int asked = 0, questions = 0;
  int64_t time = 0;
};

// Who asks the same again waits. All that is asked before anything else is enqueued is one wait.
void ask(int& questions, bool known) {
  auto& q = queues();
  if (known || questions++ == 0 || q.polls) return;
  q.polls = true;
  count(Count::kWait, "polling");
}

// True from the second question on, as nothing on a GPU is done at once.
bool answer(int& asked, bool known, const Clock& clock) {
  static const int late = static_cast<int>(setting("FNET_SIM_LATE", 1));
  if (!known && asked++ < late) return false;
  if (!known) host_learns(clock);
  return true;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  Device getDevice() const override { return {c10::kCUDA, current_device()}; }
  Device exchangeDevice(Device d) const override {
    const Device before = getDevice();
    uncheckedSetDevice(d);
    return before;
  }
  void setDevice(Device d) const override {
    if (d.index() >= 0) use_device(d.index());
  }
  void uncheckedSetDevice(Device d) const noexcept override {
    if (d.index() >= 0) set_thread_device(d.index());
  }
  static DeviceIndex index(Device d) { return d.index() < 0 ? current_device() : d.index(); }
  c10::Stream getStream(Device d) const override { return as_stream(current_id(index(d)), index(d)); }
  c10::Stream getDefaultStream(Device d) const override { return as_stream(0, index(d)); }
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return as_stream(next_stream(index(d)), index(d)); }
  c10::Stream getNewStream(Device d, int) const override { return as_stream(next_stream(index(d)), index(d)); }
  c10::Stream exchangeStream(c10::Stream s) const override {
    const c10::Stream before = getStream(s.device());
    stream_of_thread[s.device_index()] = s.id();
    return before;
  }
  void destroyEvent(void* event, DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void record(void** event, const c10::Stream& stream, DeviceIndex, c10::EventFlag) const override {
    check_usable();
    if (*event == nullptr) *event = new Event();
    auto& e = *static_cast<Event*>(*event);
    auto& q = queues();
    Lock lock(q.mutex);
    const int s = index_of(stream.id(), stream.device_index(), lock);
    learn_from_host(q.streams[s]);
    e = {{s, q.streams[s].issued}, q.streams[s].knows, 0, 0, c10::getTime()};
  }
  void block(void* event, const c10::Stream& stream) const override {
    check_usable();
    auto& q = queues();
    const auto& e = *static_cast<Event*>(event);
    Lock lock(q.mutex);
    const int s = index_of(stream.id(), stream.device_index(), lock);
    learn(q.streams[s].knows, e.clock);
    if (s == e.position.stream || q.streams[e.position.stream].done >= e.position.number) return;
    const uint64_t number = issue(s, lock);
    const Position p = e.position;
    put_off(s, {[p] { return queues().streams[p.stream].done >= p.number; }, nullptr, number}, lock);
  }
  bool queryEvent(void* event) const override {
    check_usable();
    auto& q = queues();
    auto& e = *static_cast<Event*>(event);
    Lock lock(q.mutex);
    ask(e.questions, host_knows(e.position));
    if (q.streams[e.position.stream].done < e.position.number) return false;
    return answer(e.asked, host_knows(e.position), e.clock);
  }
  DeviceIndex deviceCount() const noexcept override { return static_cast<DeviceIndex>(device_count()); }
  bool queryStream(const c10::Stream& stream) const override {
    check_usable();
    auto& q = queues();
    Lock lock(q.mutex);
    const int s = index_of(stream.id(), stream.device_index(), lock);
    ask(q.streams[s].questions, host_knows({s, q.streams[s].issued}));
    if (q.streams[s].done < q.streams[s].issued) return false;
    return answer(q.streams[s].asked, host_knows({s, q.streams[s].issued}), q.streams[s].knows);
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    count(Count::kWait, "synchronize stream");
    int s = 0;
    uint64_t number = 0;
    {
      Lock lock(queues().mutex);
      s = index_of(stream.id(), stream.device_index(), lock);
      number = queues().streams[s].issued;
    }
    wait_for({s, number});
  }
  void synchronizeEvent(void* event) const override {
    check_usable();
    const auto& e = *static_cast<Event*>(event);
    count(Count::kWait, "synchronize event");
    Lock lock(queues().mutex);
    wait_until_done(lock, e.position.stream, e.position.number);
    host_learns(e.clock);
  }
  void synchronizeDevice(DeviceIndex device) const override {
    if (device < 0) device = current_device();
    count(Count::kWait, "synchronize device");
    check_usable();
    auto& q = queues();
    Lock lock(q.mutex);
    for (size_t i = 0; i < q.streams.size(); ++i) {
      if (q.streams[i].device != device) continue;
      wait_until_done(lock, static_cast<int>(i), q.streams[i].issued);
      host_learns(q.streams[i].knows);
    }
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override;
  double elapsedTime(void* first, void* second, DeviceIndex) const override {
    return 1e-6 * static_cast<double>(static_cast<Event*>(second)->time - static_cast<Event*>(first)->time);
  }
};

void record_stream(const c10::DataPtr& data, c10::Stream stream) {
  if (data.get_deleter() != &free_block) return;
  Lock lock(queues().mutex);
  static_cast<Block*>(data.get_context())->recorded.insert(index_of(stream.id(), stream.device_index(), lock));
}

void Guard::recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const { record_stream(data, stream); }
void DeviceAllocator::recordStream(const c10::DataPtr& data, c10::Stream stream) { record_stream(data, stream); }

}  // namespace

int current_stream(DeviceIndex device) {
  Lock lock(queues().mutex);
  return index_of(current_id(device), device, lock);
}

int stream_number(const c10::Stream& stream) {
  Lock lock(queues().mutex);
  return index_of(stream.id(), stream.device_index(), lock);
}

}  // namespace sim

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, sim::Guard)
}
