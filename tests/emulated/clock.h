// AMX tiles as a clock: what the kernels written for them take on a processor of the same make that hides them. The
// results are nonsense.
//
// Included before everything else by `setup.py build_ext --clock`. A tile is loaded by 16 real loads of a line each and
// stored by 16 real stores. A product keeps one unit busy for 16 cycles, waits for the last line of its operands, and is
// there 36 cycles later: throughput and latency of TDPBF16PS as measured by others (uops.info). What it cannot show: how
// many tile registers there are to run ahead with, and what else real tile loads share. Of the prototype whose speed on
// AMX is known (docs/design.md) it makes two thirds. Registers 16 to 31 are kept from the compiler (-ffixed-xmm16 ..).
#pragma once

#include <immintrin.h>

#include <cstdint>

#define PENSTOCK_CLOCK inline __attribute__((always_inline))

namespace penstock {
namespace clocked {

// What is stored is made a number near 0.2, so that nothing behind it meets denormal numbers, which take their time.
static const uint32_t FRACTION = 0x807fffff, EXPONENT = 0x3e000000;

#define PENSTOCK_LINE(N, R) __asm__ volatile("vmovdqu64 %0, %%zmm" #N ::"m"(*reinterpret_cast<const __m512i*>(row + (R) * stride)))
#define PENSTOCK_LINES(T, N)                                          \
    if constexpr (TILE == T) {                                        \
        _Pragma("GCC unroll 16") for (int64_t r = 1; r < 16; ++r) PENSTOCK_LINE(24, r); \
        PENSTOCK_LINE(N, 0);                                          \
    }

template <int TILE>
PENSTOCK_CLOCK void load(const void* from, int64_t stride) {
    const char* row = static_cast<const char*>(from);
    PENSTOCK_LINES(0, 16) PENSTOCK_LINES(1, 17) PENSTOCK_LINES(2, 18) PENSTOCK_LINES(3, 19)
    PENSTOCK_LINES(4, 20) PENSTOCK_LINES(5, 21) PENSTOCK_LINES(6, 22) PENSTOCK_LINES(7, 23)
}

// Register 31 is the unit: one exclusive or and three products, one after the other.
#define PENSTOCK_PRODUCT(S, A, B)                                                                             \
    __asm__ volatile("vpxord %%zmm" #A ", %%zmm" #B ", %%zmm30\n vpxord %%zmm" #S ", %%zmm30, %%zmm30\n"      \
                     "vpxord %%zmm30, %%zmm31, %%zmm31\n vpmuludq %%zmm31, %%zmm31, %%zmm31\n"                \
                     "vpmuludq %%zmm31, %%zmm31, %%zmm31\n vpmuludq %%zmm31, %%zmm31, %%zmm31" ::)

template <int SUMS, int X, int W>
PENSTOCK_CLOCK void multiply() {
    static_assert((X == 4 || X == 5) && (W == 6 || W == 7), "as tiles.h uses them");
    if constexpr (X == 4 && W == 6) PENSTOCK_PRODUCT(16, 20, 22);
    if constexpr (X == 4 && W == 7) PENSTOCK_PRODUCT(17, 20, 23);
    if constexpr (X == 5 && W == 6) PENSTOCK_PRODUCT(18, 21, 22);
    if constexpr (X == 5 && W == 7) PENSTOCK_PRODUCT(19, 21, 23);
}

PENSTOCK_CLOCK void store(int, void* to, int64_t stride) {
    char* row = static_cast<char*>(to);
    __asm__ volatile("vmovdqa64 %%zmm31, %%zmm29" ::);
#pragma GCC unroll 7
    for (int i = 0; i < 7; ++i) __asm__ volatile("vpmuludq %%zmm29, %%zmm29, %%zmm29" ::);
    __asm__ volatile("vpandd %0%{1to16%}, %%zmm29, %%zmm29\n vpord %1%{1to16%}, %%zmm29, %%zmm29" ::"m"(FRACTION), "m"(EXPONENT));
#pragma GCC unroll 16
    for (int64_t r = 0; r < 16; ++r)
        __asm__ volatile("vmovdqu64 %%zmm29, %0" : "=m"(*reinterpret_cast<__m512i*>(row + r * stride)));
}

template <int TILE>
PENSTOCK_CLOCK void zero() {
    if constexpr (TILE == 0) __asm__ volatile("vpxord %%zmm16, %%zmm16, %%zmm16" ::);
    if constexpr (TILE == 1) __asm__ volatile("vpxord %%zmm17, %%zmm17, %%zmm17" ::);
    if constexpr (TILE == 2) __asm__ volatile("vpxord %%zmm18, %%zmm18, %%zmm18" ::);
    if constexpr (TILE == 3) __asm__ volatile("vpxord %%zmm19, %%zmm19, %%zmm19" ::);
}

}  // namespace clocked
}  // namespace penstock

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(tile) penstock::clocked::zero<tile>()
#define _tile_loadd(tile, from, stride) penstock::clocked::load<tile>(from, stride)
#define _tile_stored(tile, to, stride) penstock::clocked::store(tile, to, stride)
#define _tile_dpbf16ps(sums, x, w) penstock::clocked::multiply<sums, x, w>()
