// Memory formats: the order in which an image's values lie in memory.
#include "bridge.h"

extern "C" FnetError* fnet_channels_last(TensorPtr tensor, TensorPtr* out) {
  return fnet::guarded([&] {
    if (tensor->dim() != 4) throw fnet::InvalidArgument("channels_last: expected 4 dimensions, found " + std::to_string(tensor->dim()));
    *out = new at::Tensor(tensor->contiguous(at::MemoryFormat::ChannelsLast));
  });
}
