// Compiled with -mavx2 -mfma -mf16c.
#define W2S_ISA "avx2"
#define W2S_KERNELS kernels_avx2
#include "isa.inc"
