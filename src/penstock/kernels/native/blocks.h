// Products in blocks of a few rows and one panel, with sums in vector registers. Included once for each instruction set.
//
// A block of the result is ROWS rows x two vectors of columns. Each of its numbers is one chain of sums over K from 0
// to the end, so it depends on its own row and column alone, whatever ROWS is. What multiplies is a unit:
//   T            the numbers of x and of the packed weight;  Left: of x as it is laid out, `depth(k)` a row
//   lay_out      a row of x to every `height`-th Left
//   weight_at    where in a panel the weights of a Left begin
//   multiply     a block times a panel over some Lefts
#pragma once

#include "chunks.h"
#include "finish.h"
#include "packing.h"
#include "register_loop.h"
#include "rows.h"

namespace penstock {
namespace {

constexpr int MAX_ROWS = LANES == 16 ? 12 : 6;  // 2 * MAX_ROWS sums, two weights and an x fill the registers
constexpr int64_t LEFTS_AT_ONCE = 128;          // of K: at most 16 KiB of a panel, which stay in the first-level cache

// How many rows a block with `left` rows to go has: fewer where fewer are there, so that one row costs one row.
PENSTOCK_INLINE int64_t block_rows(int64_t left) { return left >= 4 ? MAX_ROWS : left >= 2 ? 3 : 1; }

PENSTOCK_INLINE int64_t padded_rows(int64_t rows) {
    const int64_t whole = rows / MAX_ROWS * MAX_ROWS;
    return rows == whole ? whole : whole + block_rows(rows - whole);
}

// The sums of two vectors of columns, as they are carried along K.
template <int ROWS>
struct Strip {
    Vec left[ROWS], right[ROWS];

    PENSTOCK_INLINE void begin(const float* sums, bool first) {
        for (int r = 0; r < ROWS; ++r) {
            left[r] = first ? Vec{} : load(sums + r * PANEL);
            right[r] = first ? Vec{} : load(sums + r * PANEL + LANES);
        }
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

template <class Unit>
void multiply_block(int64_t height, const typename Unit::Left* x, const typename Unit::T* w, float* sums, int64_t count,
                    bool first) {
    if (height == MAX_ROWS) Unit::template multiply<MAX_ROWS>(x, w, sums, count, first);
    if (height == 3) Unit::template multiply<3>(x, w, sums, count, first);
    if (height == 1) Unit::template multiply<1>(x, w, sums, count, first);
}

// One panel times blocks `begin` .. `end` of the rows; sums [blocks][MAX_ROWS][PANEL].
template <class Unit>
void multiply_panel(const Product& p, const typename Unit::Left* rows, int64_t panel, int64_t begin, int64_t end,
                    float* sums) {
    using T = typename Unit::T;
    const int64_t depth = Unit::depth(p.k), at_once = end - begin > 1 ? LEFTS_AT_ONCE : depth;
    const T* w = static_cast<const T*>(p.weight) + panel * packed_size(1, p.k, p.type);
    for (int64_t i = 0; i < depth; i += at_once) {
        const int64_t count = at_most(depth - i, at_once);
        for (int64_t block = begin; block < end; ++block) {
            const int64_t row = block * MAX_ROWS, height = block_rows(p.rows - row);
            float* mine = sums + (block - begin) * MAX_ROWS * PANEL;
            multiply_block<Unit>(height, rows + row * depth + i * height, w + Unit::weight_at(i), mine, count, i == 0);
            if (i + count == depth) finish<T>(p, mine, panel, row, at_most(p.rows - row, height));
        }
    }
}

template <class Unit>
void lay_row(const typename Unit::T* x, int64_t row, const Product& p, typename Unit::Left* rows) {
    const int64_t first = row / MAX_ROWS * MAX_ROWS, height = block_rows(p.rows - first), depth = Unit::depth(p.k);
    typename Unit::Left* place = rows + first * depth + row - first;
    if (x) return Unit::lay_out(x, p.k, place, height);
    for (int64_t i = 0; i < depth; ++i) place[i * height] = 0;
}

template <class Unit>
void linear(Context& context, const Product& p) {
    using Left = typename Unit::Left;
    using T = typename Unit::T;
    const int64_t panels = ceil_div(p.n, PANEL), blocks = ceil_div(p.rows, MAX_ROWS);
    const int64_t block_size = Unit::depth(p.k) * MAX_ROWS;
    auto* rows = context.rows.reserve_array<Left>(static_cast<size_t>(blocks * block_size));
    lay_rows<T>(context, p, padded_rows(p.rows), [&](int64_t row, const T* x) { lay_row<Unit>(x, row, p, rows); });
    const Chunks chunks(blocks, block_size * static_cast<int64_t>(sizeof(Left)));
    context.reserve_own(ceil_div(blocks, chunks.count) * MAX_ROWS * PANEL * static_cast<int64_t>(sizeof(float)));
    context.pool.run(chunks.count * panels, [&](Tasks& tasks, int thread) {
        float* sums = context.own_array<float>(thread);
        for (int64_t task; (task = tasks.take()) >= 0;) {
            const int64_t chunk = task / panels;
            multiply_panel<Unit>(p, rows, task % panels, chunks.first(chunk), chunks.first(chunk + 1), sums);
        }
    });
}

// The unit's own limit: one block times what of a panel stays in the first-level cache.
template <class Unit>
double register_loop(Context& context, int64_t rounds) {
    using Left = typename Unit::Left;
    using T = typename Unit::T;
    constexpr int64_t COUNT = LEFTS_AT_ONCE / 2, LEFT_BYTES = COUNT * MAX_ROWS * sizeof(Left);
    constexpr int64_t SUM_BYTES = MAX_ROWS * PANEL * sizeof(float), PANEL_BYTES = COUNT * PANEL * 4;
    const double operations = 2.0 * MAX_ROWS * PANEL * static_cast<double>(2 * COUNT / Unit::depth(2));
    return time_rounds(context, rounds, LEFT_BYTES + PANEL_BYTES + SUM_BYTES, operations, [](char* memory) {
        const auto* left = reinterpret_cast<const Left*>(memory);
        const auto* panel = reinterpret_cast<const T*>(memory + LEFT_BYTES);
        auto* sums = reinterpret_cast<float*>(memory + LEFT_BYTES + PANEL_BYTES);
        Unit::template multiply<MAX_ROWS>(left, panel, sums, COUNT, false);
    });
}

}  // namespace
}  // namespace penstock
