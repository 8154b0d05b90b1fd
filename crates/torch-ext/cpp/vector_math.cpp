// Elementary functions that are exact from their first call on.
#include "bridge.h"

#include <ATen/ops/acos.h>
#include <ATen/ops/asin.h>
#include <ATen/ops/atan.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/erf.h>
#include <ATen/ops/erfc.h>
#include <ATen/ops/erfinv.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log10.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/tan.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/trunc.h>

namespace {

// libtorch computes these by MKL's vector library, which looks for the kernel of a function at its first call. Of several
// threads that make this call together, one may get a kernel of 11 bits for its share (pytorch#188792). One call on one
// thread settles it.
void settle() {
  using Function = at::Tensor (*)(const at::Tensor&);
  static constexpr Function kFunctions[] = {at::acos, at::asin,   at::atan, at::cos,   at::erf,  at::erfc,
                                            at::erfinv, at::exp,  at::log,  at::log10, at::log2, at::sin,
                                            at::sqrt, at::tan,    at::tanh, at::trunc};
  for (const at::ScalarType kind : {at::kFloat, at::kDouble}) {
    const at::Tensor half = at::full({8}, 0.5, kind);
    for (const Function function : kFunctions) function(half);
  }
}

}  // namespace

extern "C" FnetError* fnet_settle_vector_math() { return fnet::guarded(settle); }
