// The kernels that any vector unit can run, compiled for avx512.
#include "gemm_vector.h"

namespace penstock {

Kernels avx512_kernels() { return {linear<float>, linear<uint16_t>}; }

}  // namespace penstock
