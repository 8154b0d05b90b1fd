// Switches of libtorch that hold for the whole process.
#include "bridge.h"

#include <ATen/Context.h>

#include <cstdlib>

// To be called before CUDA starts and before a group is made: cuBLAS reads its setting with its first handle, and c10d keeps
// NCCL from algorithms that add in any order when it makes the group. Operators without a deterministic form warn and go on.
extern "C" FnetError* fnet_set_deterministic(bool on) {
  return fnet::guarded([&] {
    // One workspace of a fixed size for each stream, as cuBLAS's documentation asks for; a setting of the user's stays.
    if (on) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    at::globalContext().setDeterministicAlgorithms(on, /*warn_only=*/true);
    at::globalContext().setDeterministicCuDNN(on);
  });
}

extern "C" bool fnet_is_deterministic() { return at::globalContext().deterministicAlgorithms(); }
