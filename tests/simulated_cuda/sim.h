// What the parts of the simulated device share. All are one translation unit (device_unit.cpp).
#pragma once

#include "machine.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace sim {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;

inline int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::atoll(text);
}

// ---- faults.cpp: what goes wrong on request, and what ends the process ------------------------------------------------

// Ends the process: the program did what would corrupt memory or results on a GPU.
[[noreturn]] void die(const std::string& what);
// Throws if an earlier call left the device unusable.
void check_usable();
// The device is unusable from now on, with an error code of CUDA.
void break_device(int code);

// ---- report.cpp -------------------------------------------------------------------------------------------------------

enum class Count { kOperator, kWait, kOther };
void count(Count kind, const std::string& name, int64_t by = 1);
// The next convolution begins another training step.
void step_is_over();
void convolution_begins();
// Training steps so far, and the number of an operator's call within its step.
int64_t steps_done();
int64_t next_call();

// ---- streams.cpp: the order of what runs ------------------------------------------------------------------------------

constexpr int kMaxStreams = 64;
// Per stream, a number of things enqueued on it.
using Clock = std::array<uint64_t, kMaxStreams>;

struct Block;
struct Access {
  Block* block;
  bool write;
};
// Where something stands that was enqueued.
struct Position {
  int stream = 0;
  uint64_t number = 0;
};

// The stream on which this thread enqueues, as a number of this process.
int current_stream(DeviceIndex device);
// Runs `work` in the order of the stream: at once if nothing before it is outstanding, else later on the device's thread;
// then `later` makes what is run (called once, now). `what` is for messages.
Position enqueue(int stream, const char* what, const std::vector<Access>& accesses, const std::function<void()>& now,
                 const std::function<std::function<void()>()>& later, bool* deferred = nullptr);
// A task that ends when `ready` says so.
Position enqueue_until(int stream, const char* what, const std::vector<Access>& accesses, std::function<void()> begin,
                       std::function<bool()> ready);
// Whether something on the stream is outstanding, after giving it a moment.
bool is_behind(int stream);
// The host waits for everything up to a position.
void wait_for(Position position);
bool is_done(Position position);
// The last thing that was enqueued on a stream.
Position last_of(int stream);
// What was enqueued last wrote these, too.
void mark_written(int stream, const char* what, const std::vector<Access>& accesses);
// Makes the stream wait for the position, in its order.
void join(int stream, Position position);
// The host knows that everything up to this position is done.
bool host_knows(Position position);
void wake_streams();

// ---- memory.cpp -------------------------------------------------------------------------------------------------------

struct Use {
  uint64_t number = 0;
  const char* what = "";
};
// Memory of a tensor on a device.
struct Block {
  uintptr_t address;  // where kernels work
  size_t size;
  DeviceIndex device;
  int home;  // the stream that may use the memory again at once
  std::atomic<int> pins{1};
  std::map<int, Use> reads;  // by stream, since the last write
  Position written;
  const char* writer = "";
  std::set<int> recorded;
};

bool is_device_address(const void* address);
void* real_address(const void* device_address);
c10::DataPtr allocate(size_t bytes, DeviceIndex device);
c10::Allocator* device_allocator();
// The block of a storage; null if it has none.
Block* block_of(const c10::Storage& storage);
void pin(Block* block);
void unpin(Block* block);
bool is_pinned(const void* host);
int device_count();
int card_of(DeviceIndex device);
DeviceIndex current_device();
void use_device(DeviceIndex device);
void check_device(DeviceIndex device, const char* what);

// ---- transfers.cpp ----------------------------------------------------------------------------------------------------

// Without computation, copies up to this size are made nevertheless: the host may act on their values.
constexpr size_t kSmall = size_t{64} << 10;
// The host knows more now: checks uploads and delivers downloads that are done. Called with the streams' lock held.
void settle_transfers();

}  // namespace sim
