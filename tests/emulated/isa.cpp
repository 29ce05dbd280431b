// In place of isa.cpp where AMX and VDPBF16PS are emulated: every set up to AMX can run, on a processor with AVX-512.
#include "isa.h"

namespace penstock {

Isa best_isa(int cap) {
    __builtin_cpu_init();
    const bool able = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!able) return PORTABLE;
    return static_cast<Isa>(cap < PORTABLE ? PORTABLE : cap > AMX ? AMX : cap);
}

}  // namespace penstock
