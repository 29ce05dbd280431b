// The kernels that any vector unit can run, compiled for avx512.
#include "attention_vector.h"
#include "draw.h"
#include "gemm_vector.h"
#include "read_loop.h"

namespace penstock {

Kernels avx512_kernels() {
    return {
        {linear<WideUnit<float>>, linear<WideUnit<uint16_t>>},
        {prepare<float>, prepare<uint16_t>},
        {place_heads<float>, place_heads<uint16_t>},
        {attention<float>, attention<uint16_t>},
        cap_all,
        draw_rows,
        {register_loop<WideUnit<float>>, register_loop<WideUnit<float>>},
        read_loop,
    };
}

}  // namespace penstock
