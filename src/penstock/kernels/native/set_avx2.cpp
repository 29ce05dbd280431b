// The kernels that any vector unit can run, compiled for avx2.
#include "gemm_vector.h"

namespace penstock {

Kernels avx2_kernels() { return {linear<float>, linear<uint16_t>}; }

}  // namespace penstock
