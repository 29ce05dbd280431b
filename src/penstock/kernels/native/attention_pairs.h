// Values of bfloat16 as right operands: the panels of packing.h, of which AMX takes tiles and VDPBF16PS rows.
#pragma once

#include <immintrin.h>

#include "attention.h"
#include "packing.h"

namespace penstock {
namespace {

constexpr int64_t PANEL_STEP = 2 * TILE;  // elements of a panel at one step along K

// 32 numbers as 16 pairs.
PENSTOCK_INLINE Vec pairs_of(Vec first, Vec second) {
    uint16_t line[STEP];
    store(line, first);
    store(line + LANES, second);
    return load(reinterpret_cast<const float*>(line));
}

// 16 rows of 32 numbers, row(r), to a tile in which a line holds a pair of each.
template <class Row>
PENSTOCK_INLINE void turn_pairs(uint16_t* tile, Row&& row) {
    Vec square[16];
#pragma GCC unroll 16
    for (int64_t r = 0; r < 16; ++r) square[r] = row(r);
    turn(square);
#pragma GCC unroll 16
    for (int64_t j = 0; j < 16; ++j) store(reinterpret_cast<float*>(tile + j * 32), square[j]);
}

// Two rows of 32 numbers to a line of each of two tiles: pairs of them, side by side.
struct Interleave {
    __m512i low = neighbours(0, 32), high = neighbours(16, 48);

    PENSTOCK_INLINE void operator()(__m512i first, __m512i second, uint16_t* line) const {
        _mm512_storeu_si512(line, _mm512_permutex2var_epi16(first, low, second));
        _mm512_storeu_si512(line + TILE, _mm512_permutex2var_epi16(first, high, second));
    }
    // Numbers of a vector, or, from 32 on, of a second one: 16 from `first` and 16 from `second` on, in turn.
    static PENSTOCK_INLINE __m512i neighbours(int first, int second) {
        uint16_t index[32];
        for (int i = 0; i < 16; ++i) {
            index[2 * i] = static_cast<uint16_t>(first + i);
            index[2 * i + 1] = static_cast<uint16_t>(second + i);
        }
        return _mm512_loadu_si512(index);
    }
};

// What units share whose operands are pairs of neighbours along K.
struct PairPanels {
    using Number = uint16_t;
    static int64_t right_size(int64_t k) { return ceil_div(k, STEP) * PANEL_STEP; }
    // The sum of the weights is that of the weights as they are multiplied.
    static Vec weight(Vec v) { return rounded<uint16_t>(v); }

    static PENSTOCK_INLINE Vec load_pairs_some(const Segment<uint16_t>& segment, int64_t key, int64_t i) {
        if (!segment.has(key)) return Vec{};  // an empty mask would do, but a load that hides a fault takes 50 cycles
        return (Vec)load_32(segment.row(segment.a.keys, key) + i, segment.a.width - i);
    }

    // A row of a tile is two keys' values side by side, for 16 positions along the width; two tiles make a panel.
    static void pack_values(
        const Segment<uint16_t>& segment, Ahead<uint16_t>& ahead, int64_t panel, uint16_t* right) {
        const Interleave interleave;
        for (int64_t key = 0; key < ceil_div(segment.count, STEP) * STEP; key += 2) {
            ahead.step(2);
            uint16_t* line = right + key / STEP * PANEL_STEP + key % STEP / 2 * 32;
            interleave(values(segment, key, panel * PANEL), values(segment, key + 1, panel * PANEL), line);
        }
    }

    // 32 of a position's values; zeros behind the width, and for a position that is not there.
    static PENSTOCK_INLINE __m512i values(const Segment<uint16_t>& segment, int64_t key, int64_t i) {
        if (!segment.has(key)) return _mm512_setzero_si512();
        return load_32(segment.row(segment.a.values, key) + i, segment.a.width - i);
    }

    // The first `left` of 32 numbers, zeros behind them.
    static PENSTOCK_INLINE __m512i load_32(const uint16_t* from, int64_t left) {
        return left >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16((1U << left) - 1, from);
    }
};

}  // namespace
}  // namespace penstock
