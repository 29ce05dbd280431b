// The instruction sets that the library has kernels for, and which of them this processor and system can run.
#pragma once

namespace penstock {

// In order: each set includes those before it. The numbers are part of the C interface (see native.py).
enum Isa : int { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3, AMX = 4 };

// The fastest set that can run here and is not above `cap`. That is the highest, but for AVX512_BF16 where its
// instruction is slow: only who caps at exactly that set gets it there. Asks the system for AMX tiles only when `cap`
// allows them.
Isa best_isa(int cap);

}  // namespace penstock
