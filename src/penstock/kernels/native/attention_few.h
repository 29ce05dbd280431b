// Attention of a tile of few queries with vector instructions: a key in every lane, and values as they lie in the cache.
//
// Keys are turned as they lie, pairs of bfloat16 as one number, and multiplied at once; values are not laid out at all.
// Every number comes from the same operations in the same order as in attention_lanes.h.
#pragma once

#include "attention.h"
#include "blocks.h"

namespace penstock {
namespace {

// Numbers of a cache in a vector, as it lies there.
template <class T>
constexpr int64_t NUMBERS = LANES * static_cast<int64_t>(sizeof(float) / sizeof(T));

// Numbers `at` .. of a key as they lie; zeros where it is not there, and behind its end.
template <class T>
PENSTOCK_INLINE Vec key_as_is(const Segment<T>& segment, int64_t key, int64_t at) {
    Vec v{};
    if (!segment.has(key)) return v;
    const int64_t there = at_most(segment.a.width - at, NUMBERS<T>);
    std::memcpy(&v, segment.row(segment.a.keys, key) + at, static_cast<size_t>(there) * sizeof(T));
    return v;
}

// Numbers `at` .. of LANES keys, each in its lane. Their values are fetched on the way, a line of each: all at once
// would wait for the memory.
template <class T>
PENSTOCK_INLINE void turn_keys(const Segment<T>& segment, int64_t first, int64_t at, Vec* turned) {
    const bool whole = segment.has(first) && segment.has(first + LANES - 1) && at + NUMBERS<T> <= segment.a.width;
    const bool is_line = at * static_cast<int64_t>(sizeof(T)) % LINE_BYTES == 0;
    Vec square[LANES];
#pragma GCC unroll 16  // so that the vectors stay in registers
    for (int64_t j = 0; j < LANES; ++j) {
        if (!whole) {
            square[j] = key_as_is(segment, first + j, at);
            if (is_line) segment.fetch_line(segment.a.values, first + j, at);
            continue;
        }
        if (is_line) __builtin_prefetch(segment.row(segment.a.values, first + j) + at, 0, 2);
        std::memcpy(&square[j], segment.row(segment.a.keys, first + j) + at, sizeof(Vec));
    }
    turn(square);
#pragma GCC unroll 16
    for (int64_t j = 0; j < LANES; ++j) turned[j] = square[j];
}

// Sums of rows in VECTORS of columns, each number a chain of its own: enough of them that none waits for the one before.
template <int ROWS, int VECTORS>
struct Sums {
    Vec sums[ROWS][VECTORS] = {};

    PENSTOCK_INLINE void add(const float* x, const Vec* w) {
        for (int r = 0; r < ROWS; ++r) {
            const Vec each = splat(x[r]);
            for (int c = 0; c < VECTORS; ++c) sums[r][c] = fma(each, w[c], sums[r][c]);
        }
    }
    // To panels of a tile, from row `row` and column `column` on.
    PENSTOCK_INLINE void save(const Tile& tile, float* panels, int64_t row, int64_t column) const {
        for (int r = 0; r < ROWS; ++r)
            for (int c = 0; c < VECTORS; ++c) store(panels + tile.at(row + r, column + c * LANES), sums[r][c]);
    }
};

// How many vectors of columns are summed at once: their sums stay in registers.
template <int ROWS>
constexpr int MOST_VECTORS = ROWS * 8 <= 2 * MAX_ROWS ? 8 : ROWS * 4 <= 2 * MAX_ROWS ? 4 : 2;

// Calls body(VECTORS, first) for all of some vectors, an even number, MOST at once or what is left.
template <int MOST, class Body>
PENSTOCK_INLINE void each_strip(int64_t vectors, Body&& body) {
    int64_t at = 0;
    for (; MOST >= 8 && vectors - at >= 8; at += 8) body(std::integral_constant<int, 8>(), at);
    for (; MOST >= 4 && vectors - at >= 4; at += 4) body(std::integral_constant<int, 4>(), at);
    for (; at < vectors; at += 2) body(std::integral_constant<int, 2>(), at);
}

// scores of VECTORS of keys from `key` on; queries [width][ROWS].
template <int ROWS, int VECTORS, class T>
void score_strip(
    const Tile& tile, const Segment<T>& segment, int64_t key, const float* queries, float* scores, int64_t row) {
    constexpr int64_t EACH = NUMBERS<T> / LANES;  // numbers in a lane
    const int64_t width = segment.a.width;
    Sums<ROWS, VECTORS> sums;
    for (int64_t at = 0; at < width; at += NUMBERS<T>) {
        Vec turned[VECTORS][LANES];
        for (int c = 0; c < VECTORS; ++c) turn_keys(segment, key + c * LANES, at, turned[c]);
        const float* x = queries + at * ROWS;
        Sums<ROWS, VECTORS> now = sums;  // in registers, which turning needs for itself
        for (int64_t j = 0, left = width - at; j < LANES && left > 0; ++j, left -= EACH, x += EACH * ROWS) {
            Vec first[VECTORS], second[VECTORS];
            for (int c = 0; c < VECTORS; ++c) {
                first[c] = EACH == 1 ? turned[c][j] : (Vec)((BitVec)turned[c][j] << 16);
                second[c] = (Vec)((BitVec)turned[c][j] & 0xffff0000U);
            }
            now.add(x, first);
            if (EACH == 2 && left > 1) now.add(x + ROWS, second);
        }
        sums = now;
    }
    sums.save(tile, scores, row, key);
}

// VECTORS of columns of the values, from `at` on; weights [count][ROWS]. Of what comes `next`, the keys are fetched.
// Keys that are skipped come first and weigh nothing.
template <int ROWS, int VECTORS, class T>
void value_strip(const Tile& tile, const Segment<T>& segment, const Segment<T>& next, int64_t at, const float* weights,
                 float* out, int64_t row) {
    const void* values = segment.a.values;
    const int64_t width = segment.a.width;
    const bool whole = at + VECTORS * LANES <= width;
    Sums<ROWS, VECTORS> sums;
    for (int64_t key = segment.skipped; key < segment.count; ++key) {
        const T* from = segment.row(values, key) + at;
        for (int64_t column = at; column < at + VECTORS * LANES; column += 64 / static_cast<int64_t>(sizeof(T)))
            next.fetch_line(next.a.keys, key, column);
        Vec columns[VECTORS];
        for (int c = 0; c < VECTORS; ++c)
            columns[c] = whole ? load(from + c * LANES) : load_some(from + c * LANES, width - at - c * LANES);
        sums.add(weights + key * ROWS, columns);
    }
    sums.save(tile, out, row, at);
}

// Calls body(ROWS) with the number of rows as a constant.
template <class Body, int... LESS>
PENSTOCK_INLINE void with_rows(int64_t rows, Body&& body, std::integer_sequence<int, LESS...>) {
    ((rows == LESS + 1 ? body(std::integral_constant<int, LESS + 1>()) : void()), ...);
}

// Calls body(ROWS, first) for blocks of a tile's rows.
template <class Body>
PENSTOCK_INLINE void each_few(const Tile& tile, Body&& body) {
    each_block(tile.height, [&](int64_t first, int64_t height) {
        with_rows(height, [&](auto rows) { body(rows, first); }, std::make_integer_sequence<int, MAX_ROWS>());
    });
}

// As `attend_lanes`, for a tile of few queries.
template <class Unit, class T>
void attend_few(
    const Tile& tile, Space<Unit>& space, int64_t start, const Segment<T>& segment, const Segment<T>& next) {
    const int64_t width = tile.a.width, count = segment.count;
    each_few(tile, [&](auto rows, int64_t row) {
        constexpr int MOST = MOST_VECTORS<rows> < 4 ? 2 : 4;
        each_strip<MOST>(ceil_div(count, PANEL) * PANEL / LANES, [&](auto vectors, int64_t first) {
            const float* queries = space.queries + row * width;
            score_strip<rows, vectors>(tile, segment, first * LANES, queries, space.scores, row);
        });
    });
    weigh_rows(tile, space, start, count);
    Unit::lay_out(space.scores, tile.padded, tile.height, count, space.weights);
    each_few(tile, [&](auto rows, int64_t row) {
        each_strip<MOST_VECTORS<rows>>(ceil_div(width, PANEL) * PANEL / LANES, [&](auto vectors, int64_t first) {
            const float* weights = space.weights + row * count;
            value_strip<rows, vectors>(tile, segment, next, first * LANES, weights, space.partial, row);
        });
    });
    merge_rows(tile, space, start, count);
}

}  // namespace
}  // namespace penstock
