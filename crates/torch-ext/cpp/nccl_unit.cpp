// libfnet_nccl.so as one translation unit.
#include "error.cpp"
#include "nccl.cpp"
