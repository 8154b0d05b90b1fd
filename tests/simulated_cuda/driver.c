// libcuda.so.1 of the simulated machine: what the product asks before it loads libtorch_cuda.
#include "machine.h"

#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, UNKNOWN = 999 };

static int visible_gpu(int device, struct SimGpu* out) {
  int gpus[SIM_MAX_GPUS];
  if (device < 0 || device >= sim_visible(gpus)) return INVALID_DEVICE;
  *out = sim_gpu(gpus[device]);
  return SUCCESS;
}

int cuInit(unsigned flags) {
  if (flags != 0) return INVALID_VALUE;
  if (sim_driver_is("hang")) pause();
  if (sim_driver_is("broken")) return UNKNOWN;
  int gpus[SIM_MAX_GPUS];
  return sim_visible(gpus) > 0 ? SUCCESS : NO_DEVICE;
}

int cuDriverGetVersion(int* version) {
  *version = sim_driver_is("old") ? 12040 : 13000;
  return SUCCESS;
}

int cuDeviceGetCount(int* count) {
  int gpus[SIM_MAX_GPUS];
  *count = sim_visible(gpus);
  return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
  struct SimGpu gpu;
  *device = ordinal;
  return visible_gpu(ordinal, &gpu);
}

int cuDeviceGetName(char* name, int size, int device) {
  struct SimGpu gpu;
  const int code = visible_gpu(device, &gpu);
  if (code == SUCCESS) snprintf(name, (size_t)size, "%s", gpu.name);
  return code;
}

int cuDeviceTotalMem_v2(size_t* bytes, int device) {
  struct SimGpu gpu;
  const int code = visible_gpu(device, &gpu);
  if (code == SUCCESS) *bytes = gpu.bytes;
  return code;
}

// Attributes 75 and 76 are the compute capability, 20 is the compute mode (3: one process only).
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  struct SimGpu gpu;
  const int code = visible_gpu(device, &gpu);
  if (code != SUCCESS) return code;
  switch (attribute) {
    case 75: *value = gpu.major; return SUCCESS;
    case 76: *value = gpu.minor; return SUCCESS;
    case 20: *value = atoi(sim_text("FNET_SIM_EXCLUSIVE", "0")) ? 3 : 0; return SUCCESS;
    default: return INVALID_VALUE;
  }
}
