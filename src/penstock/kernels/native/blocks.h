// Products in blocks of a few rows and one panel, with sums in vector registers. Included once for each instruction set.
//
// A block of the result is a few rows x two vectors of columns. Each of its numbers is one chain of sums over K from 0
// to the end, so it depends on its own row and column alone, whatever the block's height is. A unit multiplies:
//   T            the numbers of x and of the packed weight;  Left: of x as it is laid out, `depth(k)` a row
//   lefts        LANES Lefts of a row of x from one of them on, then zeros
//   LEFT_BYTES   of a panel for each Left;  weight_at: where in a panel the weights of a Left begin
//   at_once      how many Lefts make a part of a panel, which stays in a cache while so many blocks are multiplied with it
//   open         a part in the form in which they are, perhaps in OPENED floats of memory
//   multiply     a block times a panel, as it lies or opened, over some Lefts
#pragma once

#include <utility>

#include "chunks.h"
#include "finish.h"
#include "packing.h"
#include "register_loop.h"
#include "rows.h"

namespace penstock {
namespace {

constexpr int MAX_ROWS = LANES == 16 ? 12 : 6;  // 2 * MAX_ROWS sums, two weights and an x fill the registers
constexpr int64_t CACHED_BYTES = 1 << 19;       // of laid-out rows; processors without AMX have 0.5 to 2 MiB a core
constexpr int64_t LINE_BYTES = 64;
constexpr int64_t AHEAD_BYTES = 8192;           // how far ahead a panel is fetched that is used once

// How many rows the next block has where `left` are to go: all blocks are as high as each other, give or take a row.
PENSTOCK_INLINE int64_t block_rows(int64_t left) { return ceil_div(left, ceil_div(left, MAX_ROWS)); }

// Calls body(first, height) for blocks of rows, all as high as each other, give or take a row.
template <class Body>
PENSTOCK_INLINE void each_block(int64_t rows, Body&& body) {
    for (int64_t first = 0, height; first < rows; first += height) {
        height = block_rows(rows - first);
        body(first, height);
    }
}

// The blocks that rows are cut in: the higher ones first.
struct Blocks {
    int64_t rows, count;

    explicit Blocks(int64_t all) : rows(all), count(ceil_div(all, MAX_ROWS)) {}
    int64_t first(int64_t block) const { return block * (rows / count) + at_most(block, rows % count); }
    int64_t height(int64_t block) const { return first(block + 1) - first(block); }
};

// What is fetched while a block is multiplied: with each Left, `stride` bytes further on, which are two cache lines at
// most. No more than a wish.
struct Fetch {
    const char* from;
    int64_t stride;

    PENSTOCK_INLINE void at(int64_t i) const {
        __builtin_prefetch(from + i * stride, 0, 2);
        if (stride > LINE_BYTES) __builtin_prefetch(from + i * stride + LINE_BYTES, 0, 2);
    }
};

// Where what is multiplied is in the cache already.
inline Fetch nothing_of(const void* operand) { return {static_cast<const char*>(operand), 0}; }

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
    // x of the rows is DOWN floats apart.
    template <int DOWN = 1>
    PENSTOCK_INLINE void add(const float* x, Vec w_left, Vec w_right) {
        for (int r = 0; r < ROWS; ++r) {
            const Vec each = splat(x[r * DOWN]);
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

template <class Unit, class W>
using Multiply = void (*)(const typename Unit::Left*, const W*, float*, int64_t, bool, Fetch);

template <class Unit, class W, int... LESS>
Multiply<Unit, W> kernel_of(int64_t height, std::integer_sequence<int, LESS...>) {
    static constexpr Multiply<Unit, W> KERNELS[] = {Unit::template multiply<LESS + 1>...};
    return KERNELS[height - 1];
}

// sums [height][PANEL] = (or, unless `first`, +=) x [count][height] times a panel.
template <class Unit, class W>
void multiply_block(int64_t height, const typename Unit::Left* x, const W* w, float* sums, int64_t count, bool first,
                    Fetch fetch) {
    kernel_of<Unit, W>(height, std::make_integer_sequence<int, MAX_ROWS>())(x, w, sums, count, first, fetch);
}

// One panel times one block: the panel is read once, in a stream.
template <class Unit>
void stream_panel(const Product& p, const typename Unit::Left* rows, int64_t panel, const Blocks& blocks, int64_t block,
                  float* sums) {
    using T = typename Unit::T;
    const int64_t depth = Unit::depth(p.k), row = blocks.first(block), height = blocks.height(block);
    const T* w = static_cast<const T*>(p.weight) + panel * panel_size(p.k, p.type);
    const Fetch fetch{reinterpret_cast<const char*>(w) + AHEAD_BYTES, Unit::LEFT_BYTES};
    claim(p, panel, row, height);
    multiply_block<Unit>(height, rows + row * depth, w, sums, depth, true, fetch);
    finish<T>(p, sums, panel, row, height);
}

// One panel times blocks `begin` .. `end` of the rows; sums [blocks][MAX_ROWS][PANEL], or, where the panel is one part,
// a block's. A part of the panel is opened for all of them, and each fetches its share of the part behind it.
template <class Unit>
void share_panel(const Product& p, const typename Unit::Left* rows, int64_t panel, const Blocks& blocks, int64_t begin,
                 int64_t end, float* sums) {
    using T = typename Unit::T;
    const int64_t depth = Unit::depth(p.k), stride = ceil_div(Unit::LEFT_BYTES, end - begin);
    const T* w = static_cast<const T*>(p.weight) + panel * panel_size(p.k, p.type);
    float* opened = sums + (end - begin) * MAX_ROWS * PANEL;
    const int64_t at_once = Unit::at_once(end - begin), sums_apart = depth > at_once ? MAX_ROWS * PANEL : 0;
    for (int64_t i = 0; i < depth; i += at_once) {
        const int64_t count = at_most(depth - i, at_once);
        const auto* part = Unit::open(w + Unit::weight_at(i), count, opened);
        const char* behind = reinterpret_cast<const char*>(w + Unit::weight_at(i)) + count * Unit::LEFT_BYTES;
        for (int64_t block = begin; block < end; ++block) {
            const int64_t row = blocks.first(block), height = blocks.height(block);
            float* mine = sums + (block - begin) * sums_apart;
            const Fetch fetch{behind + (block - begin) * stride * count, stride};
            if (i + count == depth) claim(p, panel, row, height);
            multiply_block<Unit>(height, rows + row * depth + i * height, part, mine, count, i == 0, fetch);
            if (i + count == depth) finish<T>(p, mine, panel, row, height);
        }
    }
}

// A block's rows of x, prepared, to [depth][height], LANES Lefts of LANES rows at a time. `buffer`: a block's rows.
template <class Unit>
void lay_block(const Product& p, int64_t first, int64_t height, typename Unit::T* buffer, typename Unit::Left* block) {
    const int64_t depth = Unit::depth(p.k);
    const typename Unit::T* rows[MAX_ROWS];
    for (int64_t r = 0; r < height; ++r) rows[r] = prepare_row(p, first + r, buffer + r * p.k);
    auto* to = reinterpret_cast<float*>(block);
    for (int64_t from = 0; from < height; from += LANES)
        for (int64_t at = 0; at < depth; at += LANES) {
            Vec square[LANES];
#pragma GCC unroll 16  // so that the vectors stay in registers
            for (int64_t r = 0; r < LANES; ++r)
                square[r] = from + r < height ? Unit::lefts(rows[from + r], at, p.k) : Vec{};
            turn(square);
#pragma GCC unroll 16
            for (int64_t j = 0; j < LANES; ++j) {
                if (at + j >= depth) break;
                float* line = to + (at + j) * height + from;
                // What is too much of a whole vector, the next line overwrites.
                const bool is_whole = height <= LANES && (at + j) * height + LANES <= depth * height;
                store_some(line, square[j], is_whole ? LANES : at_most(height - from, LANES));
            }
        }
}

// The rows of x as blocks, each by one thread: rows of a block share cache lines.
template <class Unit>
void lay_all(Context& context, const Product& p, const Blocks& blocks, typename Unit::Left* rows) {
    using T = typename Unit::T;
    const int64_t depth = Unit::depth(p.k);
    context.reserve_own(MAX_ROWS * p.k * static_cast<int64_t>(sizeof(T)));
    context.pool.run(blocks.count, [&](Tasks& tasks, int thread) {
        for (int64_t block; (block = tasks.take()) >= 0;) {
            const int64_t first = blocks.first(block);
            lay_block<Unit>(p, first, blocks.height(block), context.own_array<T>(thread), rows + first * depth);
        }
    });
}

template <class Unit>
void linear(Context& context, const Product& p) {
    using Left = typename Unit::Left;
    const Blocks blocks(p.rows);
    const int64_t row_bytes = Unit::depth(p.k) * static_cast<int64_t>(sizeof(Left));
    auto* rows = context.rows.reserve_array<Left>(static_cast<size_t>(p.rows * Unit::depth(p.k)));
    lay_all<Unit>(context, p, blocks, rows);
    const Chunks chunks(blocks.count, MAX_ROWS * row_bytes, CACHED_BYTES);
    const int64_t sums_bytes = ceil_div(blocks.count, chunks.count) * MAX_ROWS * PANEL * static_cast<int64_t>(sizeof(float));
    context.reserve_own(sums_bytes + Unit::OPENED * static_cast<int64_t>(sizeof(float)));
    each_panel(context, chunks, p.panels(), [&](int64_t panel, int64_t begin, int64_t end, int thread) {
        float* sums = context.own_array<float>(thread);
        if (end - begin == 1) return stream_panel<Unit>(p, rows, panel, blocks, begin, sums);
        share_panel<Unit>(p, rows, panel, blocks, begin, end, sums);
    });
}

// The unit's own limit: one block times what of a panel stays in the first-level cache.
template <class Unit>
double register_loop(Context& context, int64_t rounds) {
    using Left = typename Unit::Left;
    using T = typename Unit::T;
    constexpr int64_t COUNT = 64, LEFT_BYTES = COUNT * MAX_ROWS * sizeof(Left);
    constexpr int64_t SUM_BYTES = MAX_ROWS * PANEL * sizeof(float), PANEL_BYTES = COUNT * PANEL * 4;
    const double operations = 2.0 * MAX_ROWS * PANEL * static_cast<double>(2 * COUNT / Unit::depth(2));
    return time_rounds(context, rounds, LEFT_BYTES + PANEL_BYTES + SUM_BYTES, operations, [](char* memory) {
        const auto* left = reinterpret_cast<const Left*>(memory);
        const auto* panel = reinterpret_cast<const T*>(memory + LEFT_BYTES);
        auto* sums = reinterpret_cast<float*>(memory + LEFT_BYTES + PANEL_BYTES);
        Unit::template multiply<MAX_ROWS>(left, panel, sums, COUNT, false, Fetch{memory, 0});
    });
}

}  // namespace
}  // namespace penstock
