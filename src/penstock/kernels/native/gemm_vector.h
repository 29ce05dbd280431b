// What multiplies with plain vector instructions: float32, and bfloat16 widened to float32. One fma for each product.
#pragma once

#include "blocks.h"

namespace penstock {
namespace {

// Everything about x is the same for both: float32, one Left for each k.
template <class Number>
struct WideUnit {
    using T = Number;
    using Left = float;
    static constexpr int STRIP = 2 * LANES;  // columns at once

    static constexpr int64_t LEFT_BYTES = PANEL * sizeof(T);
    static constexpr int64_t OPENED = 128 * PANEL;

    static int64_t depth(int64_t k) { return k; }
    static constexpr int64_t at_once(int64_t) { return OPENED / PANEL; }  // 16 KiB, in the first-level cache
    static int64_t weight_at(int64_t i) { return sizeof(T) == 4 ? i * PANEL : i / STEP * 2 * TILE; }
    static Vec lefts(const T* x, int64_t at, int64_t k) { return load_some(x + at, k - at); }

    static const float* open(const float* w, int64_t, float*) { return w; }

    // Widened once for all blocks, to [count][PANEL].
    static const float* open(const uint16_t* w, int64_t count, float* space) {
        for (int64_t i = 0; i < count; i += 2)
            for (int column = 0; column < PANEL; column += LANES) {
                const Pair pair = load_pairs(w + pairs_at(i) + pair_at(column));
                store(space + i * PANEL + column, pair.first);
                if (i + 1 < count) store(space + (i + 1) * PANEL + column, pair.second);
            }
        return space;
    }

    template <int ROWS, class W>
    static void multiply(const float* x, const W* w, float* sums, int64_t count, bool first, Fetch fetch) {
        for (int column = 0; column < PANEL; column += STRIP) {
            Strip<ROWS> strip;
            strip.begin(sums + column, first);
            add_all(strip, x, w, column, count, fetch);
            strip.save(sums + column);
            fetch.stride = 0;  // all of it was fetched with the first columns
        }
    }

    template <int ROWS>
    static PENSTOCK_INLINE void add_all(
        Strip<ROWS>& strip, const float* x, const float* w, int column, int64_t count, Fetch fetch) {
        for (int64_t i = 0; i < count; ++i) {
            const float* line = w + i * PANEL + column;
            fetch.at(i);
            strip.add(x + i * ROWS, load(line), load(line + LANES));
        }
    }

    template <int ROWS>
    static PENSTOCK_INLINE void add_all(
        Strip<ROWS>& strip, const float* x, const uint16_t* w, int column, int64_t count, Fetch fetch) {
        const int64_t left = pair_at(column), right = pair_at(column + LANES);
        for (int64_t i = 0; i < count; i += 2) {
            const Pair a = load_pairs(w + pairs_at(i) + left), b = load_pairs(w + pairs_at(i) + right);
            fetch.at(i);
            strip.add(x + i * ROWS, a.first, b.first);
            if (i + 1 == count) return;
            fetch.at(i + 1);
            strip.add(x + (i + 1) * ROWS, a.second, b.second);
        }
    }

    // Where the pairs of positions i, i + 1 lie in a panel of bfloat16.
    static PENSTOCK_INLINE int64_t pairs_at(int64_t i) { return i / STEP * 2 * TILE + i % STEP / 2 * 32; }

    // Where a column's pair lies among them.
    static PENSTOCK_INLINE int64_t pair_at(int64_t column) { return column / 16 * TILE + column % 16 * 2; }
};

}  // namespace
}  // namespace penstock
