// The key-value store through which ranks find each other.
#include "bridge.h"
#include "process_group.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

constexpr auto kCollective = FnetErrorKind::kCollective;

std::vector<uint8_t> bytes(const uint8_t* data, size_t size) { return {data, data + size}; }

}  // namespace

// `listen_fd` is a bound and listening socket for the server to take over, or -1.
extern "C" FnetError* fnet_store_new(const char* host, uint16_t port, bool is_server, int64_t timeout_ms,
                                     int listen_fd, FnetStore** out) {
  return fnet::guarded(
      [&] {
        c10d::TCPStoreOptions options;
        options.port = port;
        options.isServer = is_server;
        options.waitWorkers = false;
        options.timeout = std::chrono::milliseconds(timeout_ms);
        if (listen_fd >= 0) options.masterListenFd = listen_fd;
        *out = new FnetStore{c10::make_intrusive<c10d::TCPStore>(host, options)};
      },
      kCollective);
}

// A view of the store whose keys all begin with `prefix`.
extern "C" FnetError* fnet_store_prefixed(FnetStore* store, const char* prefix, FnetStore** out) {
  return fnet::guarded([&] { *out = new FnetStore{c10::make_intrusive<c10d::PrefixStore>(prefix, store->store)}; });
}

extern "C" FnetError* fnet_store_set(FnetStore* store, const char* key, const uint8_t* data, size_t size) {
  return fnet::guarded([&] { store->store->set(key, bytes(data, size)); }, kCollective);
}

// Waits for the key and returns a copy of its value, to be released by fnet_bytes_free.
extern "C" FnetError* fnet_store_get(FnetStore* store, const char* key, int64_t timeout_ms, uint8_t** data,
                                     size_t* size) {
  return fnet::guarded(
      [&] {
        store->store->wait({key}, std::chrono::milliseconds(timeout_ms));
        const std::vector<uint8_t> value = store->store->get(key);
        auto* copy = static_cast<uint8_t*>(std::malloc(value.empty() ? 1 : value.size()));
        if (copy == nullptr) throw std::bad_alloc();
        std::copy(value.begin(), value.end(), copy);
        *data = copy;
        *size = value.size();
      },
      kCollective);
}

extern "C" FnetError* fnet_store_add(FnetStore* store, const char* key, int64_t amount, int64_t* out) {
  return fnet::guarded([&] { *out = store->store->add(key, amount); }, kCollective);
}

extern "C" void fnet_bytes_free(uint8_t* data) { std::free(data); }

extern "C" FnetError* fnet_store_free(FnetStore* store) {
  return fnet::guarded([&] { delete store; }, kCollective);
}
