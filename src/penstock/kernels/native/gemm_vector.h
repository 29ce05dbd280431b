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

    static int64_t depth(int64_t k) { return k; }
    static int64_t weight_at(int64_t i) { return sizeof(T) == 4 ? i * PANEL : i / STEP * 2 * TILE; }
    static void lay_out(const T* x, int64_t k, float* place, int64_t height) {
        for (int64_t i = 0; i < k; ++i) place[i * height] = widen(x[i]);
    }

    template <int ROWS>
    static void multiply(const float* x, const T* w, float* sums, int64_t count, bool first) {
        for (int column = 0; column < PANEL; column += STRIP) {
            Strip<ROWS> strip;
            strip.begin(sums + column, first);
            add_all(strip, x, w, column, count);
            strip.save(sums + column);
        }
    }

    template <int ROWS>
    static PENSTOCK_INLINE void add_all(Strip<ROWS>& strip, const float* x, const float* w, int column, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            const float* line = w + i * PANEL + column;
            strip.add(x + i * ROWS, load(line), load(line + LANES));
        }
    }

    template <int ROWS>
    static PENSTOCK_INLINE void add_all(
        Strip<ROWS>& strip, const float* x, const uint16_t* w, int column, int64_t count) {
        const int64_t left = pair_at(column), right = pair_at(column + LANES);
        for (int64_t i = 0; i < count; i += 2) {
            const uint16_t* pairs = w + i / STEP * 2 * TILE + i % STEP / 2 * 32;
            const Pair a = load_pairs(pairs + left), b = load_pairs(pairs + right);
            strip.add(x + i * ROWS, a.first, b.first);
            if (i + 1 < count) strip.add(x + (i + 1) * ROWS, a.second, b.second);
        }
    }

    // Where a column's first pair lies in a panel of bfloat16.
    static PENSTOCK_INLINE int64_t pair_at(int64_t column) { return column / 16 * TILE + column % 16 * 2; }
};

}  // namespace
}  // namespace penstock
