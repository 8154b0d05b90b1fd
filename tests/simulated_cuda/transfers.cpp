// Copies between host and device.
//
// A copy from pinned memory that the host does not wait for happens late: here the source is copied at once, but compared
// when the host next learns that the copy is done. A copy to pinned memory fills its target with NaN until then.
#include "sim.h"

#include <execinfo.h>

namespace sim {

int stream_number(const c10::Stream& stream);
Tensor host_alias(const Tensor& tensor);
bool computes();
void fault_before_operator();

namespace {

struct Upload {
  Position position;
  const void* source;
  size_t bytes;
  uint64_t hash;
  void* frames[24];
  int depth;
};

struct Download {
  Position position;
  void* target;
  std::vector<char> value;
};

struct Transfers {
  std::vector<Upload> uploads;
  std::vector<std::shared_ptr<Download>> downloads;
};

// Guarded by the streams' lock.
Transfers& transfers() {
  static auto* one = new Transfers();
  return *one;
}

uint64_t hash_of(const void* data, size_t bytes) {
  uint64_t lanes[4] = {1, 2, 3, 4};
  const auto* p = static_cast<const char*>(data);
  size_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    for (int k = 0; k < 4; ++k) {
      uint64_t word;
      std::memcpy(&word, p + i + 8 * k, 8);
      lanes[k] = (lanes[k] ^ word) * 0x9e3779b97f4a7c15u;
      lanes[k] ^= lanes[k] >> 29;
    }
  }
  for (; i < bytes; ++i) lanes[0] = (lanes[0] ^ static_cast<unsigned char>(p[i])) * 0x100000001b3u;
  return lanes[0] ^ (lanes[1] * 3) ^ (lanes[2] * 5) ^ (lanes[3] * 7);
}

bool overlaps(uintptr_t begin, size_t bytes, const void* p, size_t size) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  return at < begin + bytes && begin < at + size;
}

// Frees pinned memory that nothing is copied from or to any more; with the streams' lock held.
void free_idle_pinned() {
  free_pinned([](uintptr_t begin, size_t bytes) {
    const auto& t = transfers();
    for (const Upload& u : t.uploads) {
      if (overlaps(begin, bytes, u.source, u.bytes)) return true;
    }
    for (const auto& d : t.downloads) {
      if (overlaps(begin, bytes, d->target, d->value.size())) return true;
    }
    return false;
  });
}

void PinnedAllocator::drop(void* p) {
  if (p == nullptr) return;
  {
    const std::lock_guard<std::mutex> lock(pinned().mutex);
    pinned().freed.push_back(p);
  }
  const std::lock_guard<std::mutex> lock(queues().mutex);
  free_idle_pinned();
}

void check_upload(const Upload& u) {
  if (hash_of(u.source, u.bytes) == u.hash) return;
  std::fprintf(stderr, "simulated CUDA: the upload was enqueued here:\n");
  std::fflush(stderr);
  backtrace_symbols_fd(u.frames, u.depth, 2);
  die("pinned host memory was changed before an upload of " + std::to_string(u.bytes) +
      " bytes from it was done: wait for an event of that stream before the buffer is used again");
}

// Same type and order of values: one copy of bytes does it.
bool is_direct(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides() && a.is_non_overlapping_and_dense();
}

std::vector<Access> access(const Tensor& t, bool write) {
  Block* block = t.is_cuda() ? block_of(t.storage()) : nullptr;
  return block == nullptr ? std::vector<Access>{} : std::vector<Access>{{block, write}};
}

// Plain copy of CPU tensors, below everything that libtorch would do about it.
void copy_on_host(const Tensor& to, const Tensor& from) {
  // The host acts on what it has downloaded, so that is never left out.
  if (!computes() && to.nbytes() > kSmall && is_work_memory(to.const_data_ptr())) return;
  at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const_cast<Tensor&>(to).copy_(from);
}

void upload(const Tensor& self, const Tensor& src, bool non_blocking) {
  const bool direct = is_direct(self, src);
  const bool async = non_blocking && direct && is_pinned(src.const_data_ptr());
  const bool large = src.nbytes() > (64 << 10);
  const int stream = current_stream(self.device().index());
  const Tensor to = host_alias(self);
  const auto run = [&] { copy_on_host(to, src); };
  const auto later = [&]() -> std::function<void()> {
    // The bytes of pageable memory are taken before the call returns.
    Tensor from = async ? src : src.clone();
    return [to, from] { copy_on_host(to, from); };
  };
  const Position position = enqueue(stream, "an upload", access(self, true), run, later);
  count(Count::kOther, "bytes uploaded", static_cast<int64_t>(self.nbytes()));
  if (async) {
    count(Count::kOther, "uploads from pinned memory");
    Upload u{position, src.const_data_ptr(), src.nbytes(), hash_of(src.const_data_ptr(), src.nbytes()), {}, 0};
    u.depth = backtrace(u.frames, 24);
    const std::lock_guard<std::mutex> lock(queues().mutex);
    transfers().uploads.push_back(u);
  } else if (!non_blocking) {
    count(Count::kWait, "blocking upload");
    wait_for(position);
  } else if (large) {
    // CUDA says that it may wait for the stream; nothing may rely on that.
    count(Count::kWait, "upload of more than 64 KiB from pageable memory");
  } else {
    count(Count::kOther, "uploads from pageable memory");
  }
}

void download(const Tensor& self, const Tensor& src, bool non_blocking) {
  if (!is_direct(self, src) && self.is_contiguous()) {
    // Converted and put in order on the device first, so that one copy of bytes is left.
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor same = src.to(self.scalar_type()).contiguous();
    if (is_direct(self, same)) return download(self, same, non_blocking);
  }
  const bool async = non_blocking && is_direct(self, src) && is_pinned(self.const_data_ptr());
  const int stream = current_stream(src.device().index());
  const Tensor from = host_alias(src);
  count(Count::kOther, "bytes downloaded", static_cast<int64_t>(src.nbytes()));
  if (!async) {
    const Tensor to = self;
    const auto run = [&] { copy_on_host(to, from); };
    const auto later = [&]() -> std::function<void()> { return [to, from] { copy_on_host(to, from); }; };
    count(Count::kWait, non_blocking ? "download to pageable memory" : "blocking download");
    wait_for(enqueue(stream, "a download", access(src, false), run, later));
    return;
  }
  count(Count::kOther, "downloads to pinned memory");
  auto d = std::make_shared<Download>();
  d->target = self.mutable_data_ptr();
  d->value.resize(src.nbytes());
  const auto run = [d, from] { std::memcpy(d->value.data(), from.const_data_ptr(), d->value.size()); };
  const auto later = [&]() -> std::function<void()> { return run; };
  d->position = enqueue(stream, "a download", access(src, false), run, later);
  std::memset(d->target, 0xff, d->value.size());
  const std::lock_guard<std::mutex> lock(queues().mutex);
  transfers().downloads.push_back(d);
}

Tensor& copy_(Tensor& self, const Tensor& src, bool non_blocking) {
  if (self.is_same(src)) return self;
  fault_before_operator();
  const Tensor from = src.sizes() == self.sizes() ? src : src.expand_as(self);
  if (self.is_cuda()) check_device(self.device().index(), "copy_");
  if (!from.is_cuda()) {
    upload(self, from, non_blocking);
  } else if (!self.is_cuda()) {
    check_device(src.device().index(), "copy_");
    download(self, from, non_blocking);
  } else {
    const bool same = self.device() == from.device();
    count(same ? Count::kOperator : Count::kOther, same ? "aten::copy_" : "copies between devices");
    const int stream = current_stream(self.device().index()), other = current_stream(from.device().index());
    // As libtorch: the streams of both devices wait for each other.
    if (!same) join(stream, last_of(other));
    const Tensor to = host_alias(self), source = host_alias(from);
    auto accesses = access(self, true);
    for (const Access& a : access(from, false)) {
      if (accesses.empty() || a.block != accesses[0].block) accesses.push_back(a);
    }
    const auto run = [&] { copy_on_host(to, source); };
    const auto later = [&]() -> std::function<void()> { return [to, source] { copy_on_host(to, source); }; };
    is_behind(stream);
    const Position done = enqueue(stream, "aten::copy_", accesses, run, later);
    if (!same) join(other, done);
  }
  return self;
}

at::Scalar local_scalar_dense(const Tensor& self) {
  fault_before_operator();
  count(Count::kWait, "item");
  Tensor host = at::empty({}, self.options().device(at::kCPU).requires_grad(false));
  const Tensor from = host_alias(self);
  const auto run = [&] { host.fill_(at::_local_scalar_dense(from)); };
  const auto later = [&]() -> std::function<void()> { return [from, host] { const_cast<Tensor&>(host).fill_(at::_local_scalar_dense(from)); }; };
  wait_for(enqueue(current_stream(self.device().index()), "item", access(self, false), run, later));
  return at::_local_scalar_dense(host);
}

}  // namespace

void settle_transfers() {
  auto& t = transfers();
  if (t.uploads.empty() && t.downloads.empty()) return;
  for (size_t i = 0; i < t.uploads.size();) {
    if (!host_knows(t.uploads[i].position)) {
      ++i;
      continue;
    }
    check_upload(t.uploads[i]);
    t.uploads.erase(t.uploads.begin() + static_cast<long>(i));
  }
  for (size_t i = 0; i < t.downloads.size();) {
    if (!host_knows(t.downloads[i]->position)) {
      ++i;
      continue;
    }
    std::memcpy(t.downloads[i]->target, t.downloads[i]->value.data(), t.downloads[i]->value.size());
    t.downloads.erase(t.downloads.begin() + static_cast<long>(i));
  }
  free_idle_pinned();
}

}  // namespace sim
