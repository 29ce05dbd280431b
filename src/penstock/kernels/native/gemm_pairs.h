// What multiplies with VDPBF16PS: two products of bfloat16 and their sum at a time, in the order the instruction gives.
#pragma once

#include <immintrin.h>

#include "blocks.h"

namespace penstock {
namespace {

// The pairs of 32 columns at position i of a depth: in a panel of packing.h, or in rows of PANEL pairs.
struct PairColumns {
    const void *left, *right;

    PENSTOCK_INLINE PairColumns(const uint16_t* panel, int64_t i)
        : left(panel + i / 16 * 2 * TILE + i % 16 * 32), right(panel + i / 16 * 2 * TILE + i % 16 * 32 + TILE) {}
    PENSTOCK_INLINE PairColumns(const uint32_t* rows, int64_t i)
        : left(rows + i * PANEL), right(rows + i * PANEL + LANES) {}
};

// Rows of x whose pairs lie DOWN apart, those of a row ALONG.
template <int DOWN, int ALONG>
struct PairProduct {
    using Left = uint32_t;  // two neighbours along K

    template <int ROWS, class W>
    static PENSTOCK_INLINE void multiply(
        const uint32_t* x, const W* w, float* sums, int64_t count, bool first, Fetch fetch) {
        Strip<ROWS> strip;
        strip.begin(sums, first);
        for (int64_t i = 0; i < count; ++i) {
            const PairColumns columns(w, i);
            fetch.at(i);
            const auto a = (__m512bh)_mm512_loadu_si512(columns.left), b = (__m512bh)_mm512_loadu_si512(columns.right);
            for (int r = 0; r < ROWS; ++r) {
                const auto each = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[i * ALONG + r * DOWN]));
                strip.left[r] = _mm512_dpbf16_ps(strip.left[r], each, a);
                strip.right[r] = _mm512_dpbf16_ps(strip.right[r], each, b);
            }
        }
        strip.save(sums);
    }
};

struct PairUnit {
    using T = uint16_t;
    using Left = uint32_t;

    static constexpr int64_t LEFT_BYTES = 2 * PANEL * sizeof(T);
    static constexpr int64_t OPENED = 0;

    static constexpr int64_t depth(int64_t k) { return (k + 1) / 2; }
    // 16 KiB stay in the first-level cache, with what few blocks put aside between two parts. The sums of more blocks do
    // not, and that costs more than to read all of the panel from the second-level cache.
    static constexpr int64_t at_once(int64_t blocks) { return blocks <= 8 ? 128 : INT64_MAX / LEFT_BYTES; }
    static int64_t weight_at(int64_t i) { return i / 16 * 2 * TILE; }
    static Vec lefts(const uint16_t* x, int64_t at, int64_t k) {
        const int64_t left = k - 2 * at;
        return (Vec)_mm512_maskz_loadu_epi16(left >= 32 ? ~0U : (1U << left) - 1, x + 2 * at);
    }

    static const uint16_t* open(const uint16_t* w, int64_t, float*) { return w; }

    template <int ROWS>
    static void multiply(const uint32_t* x, const uint16_t* w, float* sums, int64_t count, bool first, Fetch fetch) {
        PairProduct<1, ROWS>::template multiply<ROWS>(x, w, sums, count, first, fetch);
    }
};

}  // namespace
}  // namespace penstock
