// Attention of a tile of few queries with vector instructions: a key in every lane, and values as they lie in the cache.
//
// Keys are turned as they lie, pairs of bfloat16 as one number, and multiplied at once; values are not laid out at all.
// Every number comes from the same operations in the same order as in attention_lanes.h. Of a unit's `Side` is wanted,
// beside what that file says:
//   rows(...)       rows of a tile as Lefts, [panel][padded][depth of PANEL], from float32 panels, perhaps in some memory
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

// Numbers `at` .. of LANES keys, each in its lane.
template <class T>
PENSTOCK_INLINE void turn_keys(const Segment<T>& segment, int64_t first, int64_t at, Vec* turned) {
    const bool whole = segment.has(first) && segment.has(first + LANES - 1) && at + NUMBERS<T> <= segment.a.width;
    Vec square[LANES];
#pragma GCC unroll 16  // so that the vectors stay in registers
    for (int64_t j = 0; j < LANES; ++j) {
        if (whole)
            std::memcpy(&square[j], segment.row(segment.a.keys, first + j) + at, sizeof(Vec));
        else
            square[j] = key_as_is(segment, first + j, at);
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
            const Vec each = Side::spread(x[r * Side::depth(PANEL)]);
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

// Where number `k` of row `row` lies in rows of Lefts.
template <class Side>
PENSTOCK_INLINE int64_t left_at(const Tile& tile, int64_t row, int64_t k) {
    return (k / PANEL * tile.padded + row) * Side::depth(PANEL) + Side::depth(k % PANEL);
}

// scores of VECTORS of keys from `key` on.
template <class Side, int ROWS, int VECTORS, class T>
void score_strip(const Tile& tile, const Segment<T>& segment, Ahead<T>& ahead, int64_t key,
                 const typename Side::Left* queries, float* scores, int64_t row) {
    const int64_t width = segment.a.width;
    Sums<Side, ROWS, VECTORS> sums;
    for (int64_t at = 0; at < width; at += NUMBERS<T>) {
        Vec turned[VECTORS][LANES];
        for (int c = 0; c < VECTORS; ++c) {
            ahead.step();
            turn_keys(segment, key + c * LANES, at, turned[c]);
        }
        const typename Side::Left* x = queries + left_at<Side>(tile, row, at);
        Sums<Side, ROWS, VECTORS> now = sums;  // in registers, which turning needs for itself
        int64_t left = Side::depth(width - at);
        for (int64_t j = 0; j < LANES; ++j)
            for (int part = 0; part < Side::template PARTS<T> && left > 0; ++part, --left, ++x) {
                Vec parts[VECTORS];
                for (int c = 0; c < VECTORS; ++c) parts[c] = Side::template part<T>(turned[c][j], part);
                now.add(x, parts);
            }
        sums = now;
    }
    sums.save(tile, scores, row, key);
}

constexpr int64_t KEYS_A_STEP = 8;  // whose values are multiplied between two steps of fetching

// VECTORS of columns of the values, from `at` on. Keys that are skipped come first and weigh nothing.
template <class Side, int ROWS, int VECTORS, class T>
void value_strip(const Tile& tile, const Segment<T>& segment, Ahead<T>& ahead, int64_t at,
                 const typename Side::Left* weights, float* out, int64_t row) {
    Sums<Side, ROWS, VECTORS> sums;
    for (int64_t key = segment.skipped / Side::KEYS * Side::KEYS, end; key < segment.count; key = end) {
        ahead.step();
        end = at_most((key / KEYS_A_STEP + 1) * KEYS_A_STEP, segment.count);
        Sums<Side, ROWS, VECTORS> now = sums;  // in registers, which fetching does not leave alone
        const typename Side::Left* x = weights + left_at<Side>(tile, row, key);
        for (; key < end; key += Side::KEYS, ++x) {
            Vec columns[VECTORS];
            Side::columns(segment, key, at, columns, std::integral_constant<int, VECTORS>());
            now.add(x, columns);
        }
        sums = now;
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

// The steps of fetching in which a segment of `count` keys is attended to.
template <class T>
int64_t steps_of(const Tile& tile, int64_t count) {
    const int64_t squares = ceil_div(count, PANEL) * PANEL / LANES * ceil_div(tile.a.width, NUMBERS<T>);
    int64_t steps = 3 * STEPS_BETWEEN;
    each_few(tile, [&](auto rows, int64_t) {
        steps += squares;
        each_strip<MOST_VECTORS<rows>>(ceil_div(tile.a.width, PANEL) * PANEL / LANES,
                                       [&](auto, int64_t) { steps += ceil_div(count, KEYS_A_STEP); });
    });
    return steps;
}

// As `attend_lanes`, for a tile of few queries.
template <class Unit, class T>
void attend_few(
    const Tile& tile, Space<Unit>& space, int64_t start, const Segment<T>& segment, Ahead<T>& ahead) {
    using Side = typename Unit::Side;
    using Left = typename Side::Left;
    const int64_t width = tile.a.width, count = segment.count;
    ahead.spread(count, steps_of<T>(tile, count));
    const Left* queries = Side::rows(tile, space.panels, width, space.queries);
    each_few(tile, [&](auto rows, int64_t row) {
        constexpr int MOST = MOST_VECTORS<rows> < 4 ? 2 : 4;
        each_strip<MOST>(ceil_div(count, PANEL) * PANEL / LANES, [&](auto vectors, int64_t first) {
            score_strip<Side, rows, vectors>(tile, segment, ahead, first * LANES, queries, space.scores, row);
        });
    });
    ahead.step(STEPS_BETWEEN);
    weigh_rows(tile, space, start, count);
    ahead.step(STEPS_BETWEEN);
    const Left* weights = Side::rows(tile, space.scores, count, space.weights);
    each_few(tile, [&](auto rows, int64_t row) {
        each_strip<MOST_VECTORS<rows>>(ceil_div(width, PANEL) * PANEL / LANES, [&](auto vectors, int64_t first) {
            value_strip<Side, rows, vectors>(tile, segment, ahead, first * LANES, weights, space.partial, row);
        });
    });
    ahead.step(STEPS_BETWEEN);
    merge_rows(tile, space, start, count);
}

}  // namespace
}  // namespace penstock
