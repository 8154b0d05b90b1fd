// Backward with errors of their own kind.
#include "bridge.h"

extern "C" FnetError* fnet_backward(TensorPtr loss) {
  return fnet::guarded([&] { loss->backward(); });
}
