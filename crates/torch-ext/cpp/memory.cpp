// Memory formats: the order in which an image's values lie in memory.
#include "bridge.h"

extern "C" FnetError* fnet_channels_last(TensorPtr tensor, TensorPtr* out) {
  return fnet::guarded([&] {
    if (tensor->dim() != 4) throw fnet::InvalidArgument("channels_last: expected 4 dimensions, found " + std::to_string(tensor->dim()));
    *out = new at::Tensor(tensor->contiguous(at::MemoryFormat::ChannelsLast));
  });
}

extern "C" FnetError* fnet_is_channels_last(TensorPtr tensor, bool* out) {
  return fnet::guarded([&] { *out = tensor->dim() == 4 && tensor->is_contiguous(at::MemoryFormat::ChannelsLast); });
}

// Gives `tensor` the layout of channels_last in place, so that handles to it elsewhere see it too.
extern "C" FnetError* fnet_make_channels_last(TensorPtr tensor) {
  return fnet::guarded([&] {
    if (tensor->dim() == 4) tensor->set_data(tensor->detach().contiguous(at::MemoryFormat::ChannelsLast));
  });
}
