#include "isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace penstock {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

unsigned leaf_7_edx() {
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return d;
}

// AMX-BF16 and AMX-TILE.
bool has_amx_bf16() { return has_avx512_bf16() && (leaf_7_edx() >> 22 & 1) && (leaf_7_edx() >> 24 & 1); }

// Intel's cores since Sapphire Rapids, known by AVX512-FP16, take two cycles for a VDPBF16PS and one for the two fmas
// that do as much (measured: docs/log.md, 2026-11-29). They mean AMX to be used, which a hypervisor may hide.
bool has_slow_pairs() { return __builtin_cpu_is("intel") && (leaf_7_edx() >> 23 & 1); }

// Linux gives a process the 8 KiB of tile registers only on request; it refuses where it cannot save them.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}
#endif

}  // namespace

Isa best_isa(int cap) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (cap >= AMX && has_amx_bf16() && may_use_tiles()) return AMX;
    if (cap >= AVX512_BF16 && has_avx512_bf16() && (cap == AVX512_BF16 || !has_slow_pairs())) return AVX512_BF16;
    if (cap >= AVX512 && has_avx512()) return AVX512;
    if (cap >= AVX2 && has_avx2()) return AVX2;
#else
    (void)cap;
#endif
    return PORTABLE;
}

}  // namespace penstock
