// libnvidia-ml.so.1 of the simulated machine. NVML knows all GPUs, whatever CUDA_VISIBLE_DEVICES says.
#include "machine.h"

#include <stdint.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9 };

static int index_of(void* handle) { return (int)(uintptr_t)handle - 1; }

int nvmlInit_v2(void) {
  if (sim_driver_is("hang")) pause();
  return sim_driver_is("no-nvml") || sim_driver_is("broken") ? DRIVER_NOT_LOADED : SUCCESS;
}
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }
const char* nvmlErrorString(int code) { return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Simulated"; }

int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = (unsigned)(sim_gpu_count() > 0 ? sim_card(sim_gpu_count() - 1) + 1 : 0);
  return SUCCESS;
}
int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  snprintf(text, size, sim_driver_is("old") ? "550.54.14" : "580.82.07");
  return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = sim_driver_is("old") ? 12040 : 13000;
  return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  const unsigned first = index * (sim_is_mig() ? (unsigned)sim_slices() : 1);
  if (first >= (unsigned)sim_gpu_count()) return INVALID_ARGUMENT;
  *handle = (void*)(uintptr_t)(first + 1);
  return SUCCESS;
}
int nvmlDeviceGetName(void* handle, char* text, unsigned size) {
  snprintf(text, size, "%s", sim_gpu(index_of(handle)).name);
  return SUCCESS;
}
int nvmlDeviceGetUUID(void* handle, char* text, unsigned size) {
  // The card's, also where CUDA sees slices of it.
  snprintf(text, size, "GPU%s", sim_gpu(index_of(handle)).uuid + 3);
  return SUCCESS;
}

struct Memory {
  uint64_t total, free, used;
};
struct Memory2 {
  unsigned version;
  uint64_t total, reserved, free, used;
};
int nvmlDeviceGetMemoryInfo(void* handle, struct Memory* out) {
  out->total = out->free = sim_gpu(index_of(handle)).bytes;
  out->used = 0;
  return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(void* handle, struct Memory2* out) {
  out->total = out->free = sim_gpu(index_of(handle)).bytes;
  out->reserved = out->used = 0;
  return SUCCESS;
}
int nvmlDeviceGetPersistenceMode(void* handle, int* mode) {
  (void)handle;
  *mode = 1;
  return SUCCESS;
}
int nvmlDeviceGetComputeMode(void* handle, int* mode) {
  (void)handle;
  *mode = atoi(sim_text("FNET_SIM_EXCLUSIVE", "0")) ? 3 : 0;
  return SUCCESS;
}
int nvmlDeviceGetTotalEccErrors(void* handle, int kind, int counter, unsigned long long* count) {
  (void)handle, (void)kind, (void)counter;
  *count = 0;
  return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void* handle, unsigned* count, void* processes) {
  (void)handle, (void)processes;
  *count = 0;
  return SUCCESS;
}
