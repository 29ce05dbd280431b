// The kernels of a processor with AMX: bfloat16 in tiles, the rest as for AVX-512.
#include "kernels_amx.h"

namespace penstock {

Kernels amx_kernels() {
    Kernels kernels = avx512_bf16_kernels();
    kernels.linear[BFLOAT16] = linear_amx;
    kernels.attention[BFLOAT16] = attention_amx;
    kernels.register_loop[BFLOAT16] = register_loop_amx;
    return kernels;
}

}  // namespace penstock
