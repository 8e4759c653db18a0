// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c.
#define W2S_ISA "avx512"
#define W2S_KERNELS kernels_avx512
#include "isa.inc"
