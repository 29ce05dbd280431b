// The kernels that any vector unit can run, compiled for portable.
#include "gemm_vector.h"

namespace penstock {

Kernels portable_kernels() { return {linear<float>, linear<uint16_t>}; }

}  // namespace penstock
