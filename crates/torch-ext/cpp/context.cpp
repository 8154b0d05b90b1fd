// Switches of libtorch that hold for the whole process.
#include "bridge.h"

#include <ATen/Context.h>

// Operators without a deterministic form warn and go on.
extern "C" FnetError* fnet_set_deterministic(bool on) {
  return fnet::guarded([&] {
    at::globalContext().setDeterministicAlgorithms(on, /*warn_only=*/true);
    at::globalContext().setDeterministicCuDNN(on);
  });
}

extern "C" bool fnet_is_deterministic() { return at::globalContext().deterministicAlgorithms(); }
