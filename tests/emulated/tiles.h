// AMX tiles and VDPBF16PS in software, so that the kernels written for them run in tests on any processor with AVX-512.
//
// Included before everything else by `setup.py build_ext --emulate`. After the operation sections of TDPBF16PS and
// VDPBF16PS in Intel's Software Developer's Manual: in a tile even and odd products are summed apart from zero, then
// together, then onto the tile; in a vector the odd product is added first, then the even one, onto the sum. Every fused
// multiply-add rounds to nearest. Not as there: denormals are kept unless the thread's MXCSR flushes them. Loads and
// stores outside the configured shape are asked of memory as the processor would, so sanitizers see them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace penstock {
namespace emulated {

struct Tiles {
    bool configured = false;
    uint16_t bytes_a_row[8];
    uint8_t rows[8];
    alignas(64) uint8_t data[8][16][64];
};

inline thread_local Tiles tiles;

// The processor faults where there is no configuration.
inline void check() {
    if (!tiles.configured) std::abort();
}

inline void load_config(const void* from) {
    const auto* config = static_cast<const uint8_t*>(from);
    if (config[0] != 1) std::abort();
    for (int tile = 0; tile < 8; ++tile) {
        std::memcpy(&tiles.bytes_a_row[tile], config + 16 + 2 * tile, 2);
        tiles.rows[tile] = config[48 + tile];
        if (tiles.bytes_a_row[tile] > 64 || tiles.rows[tile] > 16) std::abort();
    }
    std::memset(tiles.data, 0, sizeof tiles.data);
    tiles.configured = true;
}

inline void release() { tiles.configured = false; }

inline void zero(int tile) {
    check();
    std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

inline void load(int tile, const void* from, int64_t stride) {
    zero(tile);
    const auto* row = static_cast<const uint8_t*>(from);
    for (int r = 0; r < tiles.rows[tile]; ++r, row += stride)
        std::memcpy(tiles.data[tile][r], row, tiles.bytes_a_row[tile]);
}

inline void store(int tile, void* to, int64_t stride) {
    check();
    auto* row = static_cast<uint8_t*>(to);
    for (int r = 0; r < tiles.rows[tile]; ++r, row += stride)
        std::memcpy(row, tiles.data[tile][r], tiles.bytes_a_row[tile]);
}

typedef uint32_t Bits __attribute__((vector_size(64)));

// The even and the odd numbers of bfloat16 pairs, as float32.
inline __m512 even(Bits pairs) { return (__m512)(pairs << 16); }
inline __m512 odd(Bits pairs) { return (__m512)(pairs & 0xffff0000U); }

// sums += x * w for bfloat16: tiles that are narrower hold zeros, and rows that are not there stay zero.
inline void multiply(int sums, int x, int w) {
    check();
    for (int r = 0; r < tiles.rows[sums]; ++r) {
        __m512 evens{}, odds{};
        for (int k = 0; k < tiles.bytes_a_row[x] / 4; ++k) {
            uint32_t pair;
            Bits row;
            std::memcpy(&pair, tiles.data[x][r] + 4 * k, sizeof pair);
            std::memcpy(&row, tiles.data[w][k], sizeof row);
            const Bits each = Bits{} + pair;
            evens = _mm512_fmadd_ps(even(each), even(row), evens);
            odds = _mm512_fmadd_ps(odd(each), odd(row), odds);
        }
        __m512 out;
        std::memcpy(&out, tiles.data[sums][r], sizeof out);
        out += evens + odds;
        std::memcpy(tiles.data[sums][r], &out, sizeof out);
    }
}

inline __m512 multiply_pairs(__m512 sums, __m512bh a, __m512bh b) {
    const Bits x = (Bits)a, w = (Bits)b;
    return _mm512_fmadd_ps(even(x), even(w), _mm512_fmadd_ps(odd(x), odd(w), sums));
}

// Rounded to the nearest, ties to even; a NaN stays one. (The instruction takes what is denormal for 0; what vectors.h
// rounds elsewhere, it rounds here by its own formula.)
inline Bits rounded(__m512 v) {
    const Bits bits = (Bits)v;
    const auto rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
    return (v == v ? rounded : (bits | 0x400000U)) >> 16;
}

// 16 numbers of `low` as bfloat16, and behind them those of `high`.
inline __m512bh convert_both(__m512 high, __m512 low) {
    const Bits halves[2] = {rounded(low), rounded(high)};
    uint16_t numbers[32];
    for (int i = 0; i < 32; ++i) numbers[i] = static_cast<uint16_t>(halves[i / 16][i % 16]);
    __m512bh both;
    std::memcpy(&both, numbers, sizeof both);
    return both;
}

}  // namespace emulated
}  // namespace penstock

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig penstock::emulated::load_config
#define _tile_release penstock::emulated::release
#define _tile_zero penstock::emulated::zero
#define _tile_loadd penstock::emulated::load
#define _tile_stored penstock::emulated::store
#define _tile_dpbf16ps penstock::emulated::multiply
#define _mm512_dpbf16_ps penstock::emulated::multiply_pairs
#define _mm512_cvtne2ps_pbh penstock::emulated::convert_both
