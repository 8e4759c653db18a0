// The operations of a thread on its block, the only hardware that kernels use. nvcc compiles them
// to instructions; on the host fibers execute them (emulate.h), so every kernel runs, barriers
// included, without a GPU.
#pragma once

#ifdef __CUDACC__
#include "block_device.h"
#else
#include "block_host.h"
#endif
