// Attention with vector instructions: keys, values and weights are float32, whatever the cache holds.
#pragma once

#include "attention.h"
#include "gemm_vector.h"

namespace penstock {
namespace {

struct VectorUnit {
    using Number = float;
    static constexpr int64_t ROWS = MAX_ROWS;
    static void begin() {}
    static void end() {}
    static int64_t height(int64_t left) { return block_rows(left); }
    static int64_t size(int64_t rows, int64_t k) { return ceil_div(rows, MAX_ROWS) * MAX_ROWS * k; }
    static int64_t panel_size(int64_t k) { return k * PANEL; }
    static Vec weight(Vec v) { return v; }

    // To [k][block rows] for each block.
    static void lay_out(const float* panels, int64_t padded, int64_t rows, int64_t k, float* left) {
        for (int64_t first = 0, height; first < rows; first += height) {
            height = block_rows(rows - first);
            float* to = left + first * k;
            for (int64_t i = 0; i < k; ++i)
                for (int64_t r = 0; r < height; ++r)
                    to[i * height + r] = panels[(i / PANEL * padded + first + r) * PANEL + i % PANEL];
        }
    }

    // Keys are the columns: LANES of them at a time are turned, a vector of the head's width at a time.
    template <class T>
    static void pack_keys(const Segment<T>& segment, int64_t panel, float* right) {
        const int64_t width = segment.a.width;
        for (int64_t column = 0; column < PANEL; column += LANES) {
            const int64_t key = panel * PANEL + column;
            for (int64_t i = 0; i < width; i += LANES) {
                Vec square[LANES];
                for (int64_t j = 0; j < LANES; ++j) {
                    square[j] = segment.has(key + j) ? load_some(segment.row(segment.a.keys, key + j) + i, width - i) : Vec{};
                    if (i % PANEL == 0) segment.fetch(segment.a.values, key + j, i / PANEL);
                }
                turn(square);
                float* to = right + i * PANEL + column;
                for (int64_t j = 0; j < at_most(LANES, width - i); ++j) store(to + j * PANEL, square[j]);
            }
        }
    }

    template <class T>
    static void pack_values(const Segment<T>& segment, const Segment<T>& next, int64_t panel, float* right) {
        const int64_t left = segment.a.width - panel * PANEL;
        for (int64_t key = 0; key < segment.count; ++key) {
            next.fetch(next.a.keys, key, panel);
            const T* row = segment.row(segment.a.values, key) + panel * PANEL;
            for (int64_t i = 0; i < PANEL; i += LANES)
                store(right + key * PANEL + i, segment.has(key) ? load_some(row + i, left - i) : Vec{});
        }
    }

    static void multiply(const float* left, int64_t row, int64_t rows, const float* panel, float* out, int64_t k) {
        multiply_block<WideUnit<float>>(block_rows(rows - row), left + row * k, panel, out, k, true, Fetch{nullptr, 0});
    }
};

template <class T>
void attention(Context& context, const Attention* sets, int64_t count) {
    attend_all<VectorUnit, T>(context, sets, count);
}

}  // namespace
}  // namespace penstock
