// The simulated machine as the environment describes it: shared by the driver's stand-ins (C) and by libtorch_cuda's.
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SIM_MAX_GPUS 16

struct SimGpu {
  char name[64], uuid[64];
  unsigned long long bytes;
  int major, minor;
};

static inline const char* sim_text(const char* name, const char* otherwise) {
  const char* text = getenv(name);
  return text != NULL && *text != 0 ? text : otherwise;
}

// Item `index` of a list separated by commas; the last one stands for all that follow.
static inline void sim_item(const char* list, int index, char* out, size_t size) {
  const char* end = NULL;
  for (int i = 0;; ++i, list = end + 1) {
    end = strchr(list, ',');
    if (i == index || end == NULL) break;
  }
  size_t length = end == NULL ? strlen(list) : (size_t)(end - list);
  if (length >= size) length = size - 1;
  memcpy(out, list, length);
  out[length] = 0;
}

static inline int sim_driver_is(const char* state) { return strcmp(sim_text("FNET_SIM_DRIVER", "fine"), state) == 0; }

// The number of slices that each card is cut into; 0 if it is not.
static inline int sim_slices(void) { return atoi(sim_text("FNET_SIM_MIG", "0")); }
static inline int sim_is_mig(void) { return sim_slices() > 0; }
// The card that a GPU is a slice of, or is.
static inline int sim_card(int gpu) { return sim_is_mig() ? gpu / sim_slices() : gpu; }

static inline int sim_gpu_count(void) {
  const int count = atoi(sim_text("FNET_SIM_GPUS", "4"));
  if (sim_driver_is("none")) return 0;
  return count > SIM_MAX_GPUS ? SIM_MAX_GPUS : count;
}

static inline struct SimGpu sim_gpu(int index) {
  struct SimGpu gpu;
  char item[32];
  snprintf(gpu.name, sizeof gpu.name, "Simulated GPU");
  // The first digits differ, for a prefix is enough to name a GPU.
  snprintf(gpu.uuid, sizeof gpu.uuid, "%s-%08x-5eed-4000-8000-000000000000", sim_is_mig() ? "MIG" : "GPU", 0xa0b0c000u + (unsigned)index * 0x01010101u);
  sim_item(sim_text("FNET_SIM_GPU_MIB", "16384"), index, item, sizeof item);
  gpu.bytes = strtoull(item, NULL, 10) << 20;
  sim_item(sim_text("FNET_SIM_CAPABILITY", "9.0"), index, item, sizeof item);
  gpu.major = gpu.minor = 0;
  sscanf(item, "%d.%d", &gpu.major, &gpu.minor);
  return gpu;
}

// The GPU that an entry of CUDA_VISIBLE_DEVICES names, or -1.
static inline int sim_named(const char* entry) {
  char* end = NULL;
  const long index = strtol(entry, &end, 10);
  if (end != entry && *end == 0) {
    // With slices an index counts GPUs, of which a process then sees the first slice only.
    return index >= 0 && index < sim_gpu_count() && (!sim_is_mig() || index == 0) ? (int)index : -1;
  }
  int found = -1;
  if (strlen(entry) < 5) return -1;
  for (int i = 0; i < sim_gpu_count(); ++i) {
    if (strncasecmp(sim_gpu(i).uuid, entry, strlen(entry)) == 0) found = found < 0 ? i : SIM_MAX_GPUS;
  }
  return found < SIM_MAX_GPUS ? found : -1;
}

// The GPUs that CUDA shows to this process, in its order; their number is returned. As CUDA does it: an entry that names
// nothing ends the list, one that comes twice empties it, and of slices (MIG) only the first is shown.
static inline int sim_visible(int* gpus) {
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  int count = 0;
  char entry[64];
  if (visible == NULL) {
    for (; count < sim_gpu_count(); ++count) gpus[count] = count;
  } else {
    for (const char* rest = visible; *rest != 0 && count < SIM_MAX_GPUS;) {
      sim_item(rest, 0, entry, sizeof entry);
      const int gpu = sim_named(entry);
      if (gpu < 0) break;
      for (int i = 0; i < count; ++i) {
        if (gpus[i] == gpu) return 0;
      }
      gpus[count++] = gpu;
      const char* comma = strchr(rest, ',');
      rest = comma == NULL ? "" : comma + 1;
    }
  }
  return sim_is_mig() && count > 1 ? 1 : count;
}
