// Products with vector instructions: float32, and bfloat16 widened to float32. Included once for each instruction set.
//
// A block of the result is ROWS rows x two vectors of columns in registers. Each of its numbers is one chain of
// fma(x, w, sum) over K from 0 to the end, so it depends on its own row and column alone, whatever ROWS is.
#pragma once

#include "chunks.h"
#include "finish.h"
#include "packing.h"
#include "rows.h"

namespace penstock {
namespace {

constexpr int MAX_ROWS = LANES == 16 ? 12 : 6;  // 2 * MAX_ROWS sums, two weights and an x fill the registers
constexpr int STRIP = 2 * LANES;                // columns of a block

// How many rows a block with `left` rows to go has: fewer where fewer are there, so that one row costs one row.
PENSTOCK_INLINE int64_t block_rows(int64_t left) { return left >= 4 ? MAX_ROWS : left >= 2 ? 3 : 1; }

// The block that a row belongs to: blocks have MAX_ROWS rows, the last one as many as are worth computing.
PENSTOCK_INLINE int64_t padded_rows(int64_t rows) {
    const int64_t whole = rows / MAX_ROWS * MAX_ROWS;
    return rows == whole ? whole : whole + block_rows(rows - whole);
}

// Lays a row of x out in its block, float32 [k][block rows], zeros where there is no row.
template <class T>
void lay_out(const T* x, int64_t row, int64_t rows, int64_t k, float* to) {
    const int64_t first = row / MAX_ROWS * MAX_ROWS, height = block_rows(rows - first);
    float* place = to + first * k + row - first;
    for (int64_t i = 0; i < k; ++i) place[i * height] = x ? widen(x[i]) : 0.0F;
}

// The sums of one strip, as they are carried along K.
template <int ROWS>
struct Strip {
    Vec left[ROWS], right[ROWS];

    PENSTOCK_INLINE void clear() {
        for (int r = 0; r < ROWS; ++r) left[r] = right[r] = Vec{};
    }
    PENSTOCK_INLINE void add(const float* x, Vec w_left, Vec w_right) {
        for (int r = 0; r < ROWS; ++r) {
            const Vec each = splat(x[r]);
            left[r] = fma(each, w_left, left[r]);
            right[r] = fma(each, w_right, right[r]);
        }
    }
    PENSTOCK_INLINE void save(float* sums) const {
        for (int r = 0; r < ROWS; ++r) {
            store(sums + r * PANEL, left[r]);
            store(sums + r * PANEL + LANES, right[r]);
        }
    }
};

// sums [ROWS][PANEL] = rows x [k][ROWS] times a panel.
template <int ROWS>
void multiply(const float* x, const float* w, float* sums, int64_t k) {
    for (int column = 0; column < PANEL; column += STRIP) {
        Strip<ROWS> strip;
        strip.clear();
        for (int64_t i = 0; i < k; ++i) {
            const float* line = w + i * PANEL + column;
            strip.add(x + i * ROWS, load(line), load(line + LANES));
        }
        strip.save(sums + column);
    }
}

// Where a column's first pair lies in a panel of bfloat16.
PENSTOCK_INLINE int64_t pair_place(int64_t column) { return column / 16 * TILE + column % 16 * 2; }

template <int ROWS>
void multiply(const float* x, const uint16_t* w, float* sums, int64_t k) {
    for (int column = 0; column < PANEL; column += STRIP) {
        const int64_t left = pair_place(column), right = pair_place(column + LANES);
        Strip<ROWS> strip;
        strip.clear();
        for (int64_t i = 0; i < k; i += 2) {
            const uint16_t* pairs = w + i / STEP * 2 * TILE + i % STEP / 2 * 32;
            const Pair a = load_pairs(pairs + left), b = load_pairs(pairs + right);
            strip.add(x + i * ROWS, a.first, b.first);
            if (i + 1 < k) strip.add(x + (i + 1) * ROWS, a.second, b.second);
        }
        strip.save(sums + column);
    }
}

template <class T>
void multiply_block(const Product& p, const float* x, const T* w, int64_t panel, int64_t row) {
    alignas(64) float sums[MAX_ROWS * PANEL];
    const int64_t left = p.rows - row, height = block_rows(left);
    if (height == MAX_ROWS) multiply<MAX_ROWS>(x, w, sums, p.k);
    if (height == 3) multiply<3>(x, w, sums, p.k);
    if (height == 1) multiply<1>(x, w, sums, p.k);
    finish<T>(p, sums, panel, row, at_most(left, height));
}

template <class T>
void linear(Context& context, const Product& p) {
    const int64_t panels = ceil_div(p.n, PANEL), blocks = ceil_div(p.rows, MAX_ROWS);
    const int64_t panel_size = packed_size(1, p.k, sizeof(T) == 4 ? FLOAT32 : BFLOAT16), block_size = p.k * MAX_ROWS;
    float* rows = context.rows.reserve_array<float>(static_cast<size_t>(blocks * block_size));
    lay_rows<T>(context, p, padded_rows(p.rows), [&](int64_t row, const T* x) { lay_out(x, row, p.rows, p.k, rows); });
    const Chunks chunks(blocks, block_size * 4);
    context.pool.each(chunks.count * panels, [&](int64_t task) {
        const int64_t chunk = task / panels, panel = task % panels;
        const T* w = static_cast<const T*>(p.weight) + panel * panel_size;
        for (int64_t b = chunks.first(chunk); b < chunks.first(chunk + 1); ++b)
            multiply_block(p, rows + b * block_size, w, panel, b * MAX_ROWS);
    });
}

}  // namespace
}  // namespace penstock
