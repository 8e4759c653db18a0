// What a thread of a kernel may ask of its block: the only words in which the kernels speak of
// hardware. nvcc compiles them to instructions; for the host the same words are carried out by
// fibers (emulate.h), so that every kernel runs, barriers and all, where there is no GPU.
#pragma once

#ifdef __CUDACC__
#include "block_device.h"
#else
#include "block_host.h"
#endif
