// Handles of stores, process groups and running collectives.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

struct FnetStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct FnetGroup {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
};

// A running collective. Once it is waited for, `averaged` (if any) is divided by `divisor`.
struct FnetWork {
  c10::intrusive_ptr<c10d::Work> work;
  at::Tensor averaged;
  double divisor = 1.0;
};
