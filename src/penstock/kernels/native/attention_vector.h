// Attention with vector instructions: keys, values and weights are float32, whatever the cache holds.
#pragma once

#include "attention_all.h"
#include "attention_lanes.h"
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
    static int64_t panel_size(int64_t k) { return std::max<int64_t>(k * PANEL, MAX_ROWS * KEY_STRIDE); }
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

    static bool in_lanes(const Tile& tile) { return tile.height > FEW_QUERIES && tile.a.width <= WIDEST; }

    static void lay_out_queries(const Tile& tile, const float* panels, float* left) {
        if (in_lanes(tile)) return turn_queries(tile, panels, left);
        lay_out(panels, tile.padded, tile.height, tile.a.width, left);
    }

    template <class T>
    static void attend(const Tile& tile, Space<VectorUnit>& space, int64_t start, const Segment<T>& segment,
                       const Segment<T>& next) {
        if (in_lanes(tile)) return attend_lanes<VectorUnit>(tile, space, start, segment, next);
        attend_segment(tile, space, start, segment, next);
    }

    // Keys are the columns: LANES of them at a time are turned, a vector of the head's width at a time.
    template <class T>
    static void pack_keys(const Segment<T>& segment, int64_t panel, float* right) {
        for (int64_t column = 0; column < PANEL; column += LANES) {
            const int64_t key = panel * PANEL + column, width = segment.a.width;
            for (int64_t j = 0; j < LANES; ++j) segment.fetch_row(segment.a.values, key + j);
            const bool all = segment.has(key) && segment.has(key + LANES - 1);
            const int64_t whole = all ? width / LANES * LANES : 0;
            const T* rows[LANES];
            for (int64_t j = 0; j < LANES; ++j) rows[j] = segment.row(segment.a.keys, all ? key + j : 0);
            for (int64_t i = 0; i < whole; i += LANES)
                turn_square(right + i * PANEL + column, LANES, [&](int64_t j) { return load(rows[j] + i); });
            for (int64_t i = whole; i < width; i += LANES)
                turn_square(right + i * PANEL + column, width - i,
                            [&](int64_t j) { return segment.load(segment.a.keys, key + j, i); });
        }
    }

    template <class T>
    static void pack_values(const Segment<T>& segment, const Segment<T>& next, int64_t panel, float* right) {
        for (int64_t key = 0; key < segment.count; ++key) {
            next.fetch(next.a.keys, key, panel);
            for (int64_t i = 0; i < PANEL; i += LANES)
                store(right + key * PANEL + i, segment.load(segment.a.values, key, panel * PANEL + i));
        }
    }

    static void multiply(const float* left, int64_t row, int64_t rows, const float* panel, float* out, int64_t k) {
        multiply_block<WideUnit<float>>(block_rows(rows - row), left + row * k, panel, out, k, true,
                                        Fetch{reinterpret_cast<const char*>(panel), 0});
    }
};

template <class T>
void attention(Context& context, const Attention* sets, int64_t count) {
    attend_all<VectorUnit, T>(context, sets, count);
}

}  // namespace
}  // namespace penstock
