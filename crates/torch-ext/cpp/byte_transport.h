// What moves bytes between ranks for a process group of ByteTransportBackend: functions of Rust.
#pragma once

#include <cstddef>
#include <cstdint>

// Every function that can fail returns null, or a message from malloc. Each moves `length` bytes per rank and waits
// for them `timeout_ms` at most. After a failure the buffers may still be written to.
struct FnetByteTransport {
  void* state;
  // Rank `root`'s bytes into those of every rank.
  char* (*broadcast)(void* state, uint8_t* bytes, size_t length, int32_t root, int64_t timeout_ms);
  // Every rank's `input` into `output`, in the order of ranks.
  char* (*all_gather)(void* state, const uint8_t* input, size_t length, uint8_t* output, int64_t timeout_ms);
  // Part r of `input` to rank r; part r of `output` from rank r.
  char* (*all_to_all)(void* state, const uint8_t* input, size_t length, uint8_t* output, int64_t timeout_ms);
  char* (*barrier)(void* state, int64_t timeout_ms);
  // Makes a call that waits in another thread fail.
  void (*abort)(void* state);
  char* (*shutdown)(void* state);
  void (*free)(void* state);
};
