// Attention of a tile of few queries with vector instructions: a key in every lane, and values as they lie in the cache.
//
// Keys are turned as they lie, pairs of bfloat16 as one number, and multiplied at once; values are not laid out at all.
// Every number comes from the same operations in the same order as in attention_lanes.h. Of a unit's `Side` is wanted,
// beside what that file says:
//   PARTS<T>        how many Lefts a lane of the cache is multiplied with; part(lanes, i): what number i of them is
//   KEYS            how many keys' values a Left of weights is multiplied with; columns(...): these of some columns
//   spread(left)    a Left in every lane; add(each, w, sum): sum + each times w
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
template <class Side, int ROWS, int VECTORS>
struct Sums {
    Vec sums[ROWS][VECTORS] = {};

    PENSTOCK_INLINE void add(const typename Side::Left* x, const Vec* w) {
        for (int r = 0; r < ROWS; ++r) {
            const Vec each = Side::spread(x[r]);
            for (int c = 0; c < VECTORS; ++c) sums[r][c] = Side::add(each, w[c], sums[r][c]);
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

// scores of VECTORS of keys from `key` on; queries [depth of width][ROWS].
template <class Side, int ROWS, int VECTORS, class T>
void score_strip(const Tile& tile, const Segment<T>& segment, int64_t key, const typename Side::Left* queries,
                 float* scores, int64_t row) {
    const int64_t width = segment.a.width;
    Sums<Side, ROWS, VECTORS> sums;
    for (int64_t at = 0; at < width; at += NUMBERS<T>) {
        Vec turned[VECTORS][LANES];
        for (int c = 0; c < VECTORS; ++c) turn_keys(segment, key + c * LANES, at, turned[c]);
        const typename Side::Left* x = queries + Side::depth(at) * ROWS;
        Sums<Side, ROWS, VECTORS> now = sums;  // in registers, which turning needs for itself
        int64_t left = Side::depth(width - at);
        for (int64_t j = 0; j < LANES; ++j)
            for (int part = 0; part < Side::template PARTS<T> && left > 0; ++part, --left, x += ROWS) {
                Vec parts[VECTORS];
                for (int c = 0; c < VECTORS; ++c) parts[c] = Side::template part<T>(turned[c][j], part);
                now.add(x, parts);
            }
        sums = now;
    }
    sums.save(tile, scores, row, key);
}

// VECTORS of columns of the values, from `at` on; weights [depth of count][ROWS]. Of what comes `next`, the keys are
// fetched. Keys that are skipped come first and weigh nothing.
template <class Side, int ROWS, int VECTORS, class T>
void value_strip(const Tile& tile, const Segment<T>& segment, const Segment<T>& next, int64_t at,
                 const typename Side::Left* weights, float* out, int64_t row) {
    Sums<Side, ROWS, VECTORS> sums;
    for (int64_t key = segment.skipped / Side::KEYS * Side::KEYS; key < segment.count; key += Side::KEYS) {
        for (int64_t one = key; one < key + Side::KEYS; ++one)
            for (int64_t column = at; column < at + VECTORS * LANES; column += 64 / static_cast<int64_t>(sizeof(T)))
                next.fetch_line(next.a.keys, one, column);
        Vec columns[VECTORS];
        Side::columns(segment, key, at, columns, std::integral_constant<int, VECTORS>());
        sums.add(weights + key / Side::KEYS * ROWS, columns);
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
    using Side = typename Unit::Side;
    using Left = typename Side::Left;
    const int64_t width = tile.a.width, count = segment.count;
    each_few(tile, [&](auto rows, int64_t row) {
        constexpr int MOST = MOST_VECTORS<rows> < 4 ? 2 : 4;
        const Left* queries = reinterpret_cast<const Left*>(space.queries) + row * Side::depth(width);
        each_strip<MOST>(ceil_div(count, PANEL) * PANEL / LANES, [&](auto vectors, int64_t first) {
            score_strip<Side, rows, vectors>(tile, segment, first * LANES, queries, space.scores, row);
        });
    });
    weigh_rows(tile, space, start, count);
    Unit::lay_out(space.scores, tile.padded, tile.height, count, space.weights);
    each_few(tile, [&](auto rows, int64_t row) {
        const Left* weights = reinterpret_cast<const Left*>(space.weights) + row * Side::depth(count);
        each_strip<MOST_VECTORS<rows>>(ceil_div(width, PANEL) * PANEL / LANES, [&](auto vectors, int64_t first) {
            value_strip<Side, rows, vectors>(tile, segment, next, first * LANES, weights, space.partial, row);
        });
    });
    merge_rows(tile, space, start, count);
}

}  // namespace
}  // namespace penstock
