// libtorch_cuda.so of the simulated machine as one translation unit: libtorch's headers take longer to parse than all of
// it to compile. The order is that of use.
#include "faults.cpp"
#include "report.cpp"
#include "memory.cpp"
#include "streams.cpp"
#include "transfers.cpp"
#include "layouts.cpp"
#include "operators.cpp"
#include "vision.cpp"
#include "hooks.cpp"
#include "nccl.cpp"
