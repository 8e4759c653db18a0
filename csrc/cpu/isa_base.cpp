// Any CPU: SSE2 on x86-64, NEON on ARM.
#define W2S_ISA "base"
#define W2S_KERNELS kernels_base
#include "isa.inc"
