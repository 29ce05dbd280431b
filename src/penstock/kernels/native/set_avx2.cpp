// The kernels that any vector unit can run, compiled for avx2.
#include "attention_vector.h"
#include "gemm_vector.h"
#include "rows.h"

namespace penstock {

Kernels avx2_kernels() {
    return {
        {linear<float>, linear<uint16_t>},
        {prepare<float>, prepare<uint16_t>},
        {place_heads<float>, place_heads<uint16_t>},
        {attention<float>, attention<uint16_t>},
    };
}

}  // namespace penstock
