// Bytes of the host on their way to a CUDA device, through pinned memory that is taken again only once its copy is done.
#include "bridge.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>
#include <optional>

// A ring of pinned buffers, on the current stream or on one of its own.
struct FnetUploader {
  struct Buffer {
    at::Tensor bytes;
    c10::Event copied{c10::kCUDA};
  };

  c10::Device device;
  std::optional<c10::Stream> own_stream;
  std::vector<std::unique_ptr<Buffer>> buffers;

  // A buffer of at least `count` bytes that no copy reads any more. Another one is made where all are in use: waiting for
  // one could mean waiting for a collective that never ends.
  Buffer& free_buffer(int64_t count) {
    Buffer* found = nullptr;
    for (const auto& buffer : buffers) {
      if (!buffer->copied.query()) continue;
      if (found == nullptr || buffer->bytes.numel() > found->bytes.numel()) found = buffer.get();
    }
    if (found == nullptr) found = buffers.emplace_back(std::make_unique<Buffer>()).get();
    if (!found->bytes.defined() || found->bytes.numel() < count) {
      found->bytes = at::empty({count}, at::TensorOptions(at::kByte).pinned_memory(true));
    }
    return *found;
  }

  at::Tensor upload(const void* bytes, int64_t count) {
    const at::NoGradGuard no_grad;
    const c10::Stream current = at::accelerator::getCurrentStream(device.index());
    const c10::Stream stream = own_stream.value_or(current);
    Buffer& buffer = free_buffer(count);
    if (count > 0) std::memcpy(buffer.bytes.mutable_data_ptr(), bytes, static_cast<size_t>(count));
    at::Tensor target;
    {
      const c10::StreamGuard guard(stream);
      target = at::empty({count}, at::TensorOptions(at::kByte).device(device));
      target.copy_(buffer.bytes.narrow(0, 0, count), /*non_blocking=*/true);
      buffer.copied.record(stream);
    }
    if (stream != current) {
      buffer.copied.block(current);
      // Its memory is the other stream's, which must not have it back before the current one is done with it.
      target.record_stream(current);
    }
    return target;
  }
};

// With `beside`, copies run on a stream of their own, beside what the device computes.
extern "C" FnetError* fnet_uploader_new(int device, bool beside, FnetUploader** out) {
  return fnet::guarded([&] {
    const c10::Device on(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
    std::optional<c10::Stream> stream;
    if (beside) stream = c10::impl::VirtualGuardImpl(c10::kCUDA).getStreamFromGlobalPool(on, /*isHighPriority=*/false);
    *out = new FnetUploader{on, stream, {}};
  });
}

extern "C" FnetError* fnet_uploader_upload(FnetUploader* uploader, const uint8_t* bytes, size_t count, TensorPtr* out) {
  return fnet::guarded([&] { *out = new at::Tensor(uploader->upload(bytes, static_cast<int64_t>(count))); });
}

extern "C" FnetError* fnet_uploader_free(FnetUploader* uploader) {
  return fnet::guarded([&] { delete uploader; });
}
