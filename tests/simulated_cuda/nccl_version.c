// libnccl.so.2 of the simulated machine, for `doctor`. Collectives are in nccl.cpp.
int ncclGetVersion(int* version) {
  *version = 22809;
  return 0;
}
