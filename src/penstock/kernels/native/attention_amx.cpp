// Attention in AMX tiles, for a cache of bfloat16. Queries are what they are in bfloat16; weights are rounded to it.
//
// Keys are the rows of the product that gives the scores: tiles load them as they lie in the cache, and its result is
// [key][query]. Where a tile has many queries it stays so, and weights are found with a query in every lane; few are
// turned to rows.
#include "attention_all.h"
#include "attention_lanes.h"
#include "attention_pairs.h"
#include "kernels_amx.h"
#include "tiles.h"

namespace penstock {
namespace {

// 16 keys of a segment as a tile loads them: `down` bytes apart.
struct KeyRows {
    const uint16_t* first;
    int64_t down;
};

// Whole rows where they lie in one block, or, where some are not there or not a multiple of STEP wide, a copy
// [16][steps][STEP] with zeros.
KeyRows key_rows(const Segment<uint16_t>& segment, int64_t key, uint16_t* copy) {
    const int64_t width = segment.a.width, steps = ceil_div(width, STEP);
    const bool in_one_block = segment.a.block_tokens % 16 == 0;  // keys begin at multiples of 16
    if (in_one_block && width % STEP == 0 && segment.has(key) && segment.has(key + 15))
        return {segment.row(segment.a.keys, key), width * 2};
    for (int64_t r = 0; r < 16; ++r)
        for (int64_t step = 0; step < steps; ++step)
            store(reinterpret_cast<float*>(copy + (r * steps + step) * STEP),
                  PairPanels::load_pairs_some(segment, key + r, step * STEP));
    return {copy, steps * STEP * 2};
}

// sums [32][PANEL] = 32 keys times a panel of queries. FEW: no more than 16 queries are wanted, so half of each row.
template <bool FEW>
void multiply_keys(const KeyRows& low, const KeyRows& high, const uint16_t* queries, float* sums, int64_t steps) {
    clear_sums<false>();
    for (int64_t step = 0; step < steps; ++step, queries += BLOCK_STEP) {
        _tile_loadd(4, low.first + step * STEP, low.down);
        _tile_loadd(6, queries, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, high.first + step * STEP, high.down);
        _tile_dpbf16ps(2, 5, 6);
        if (FEW) continue;
        _tile_loadd(7, queries + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    save_sums<false>(sums);
}

static_assert(FEW_QUERIES == 16, "a tile's rows");

constexpr int64_t STEPS_A_PRODUCT = 8;  // of what is fetched ahead, of 32 keys; to pack their values takes 16

struct TileUnit : PairPanels {
    static constexpr int64_t ROWS = BLOCK;
    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }
    static int64_t size(int64_t rows, int64_t k) { return ceil_div(rows, BLOCK) * ceil_div(k, STEP) * BLOCK_STEP; }
    static int64_t weights_size(int64_t rows) { return size(rows, SEGMENT); }
    static int64_t right_size(int64_t width) { return ceil_div(width, PANEL) * PairPanels::right_size(SEGMENT); }

    template <int N>
    static PENSTOCK_INLINE void keep(float* to, int64_t key, Vec* weights) {
        each<N>([&](int j) { weights[j] = weight(weights[j]); });
        store_weights<N>(to, key, weights);
    }

    // Queries are columns: panels of 32 as packing.h has them. Of each 16 those that are not there are zeros.
    static void lay_out_queries(const Tile& tile, const float* panels, uint16_t* right) {
        const int64_t steps = ceil_div(tile.a.width, STEP);
        for (int64_t row = 0; row < tile.height; row += 16)
            for (int64_t step = 0; step < steps; ++step)
                turn_pairs(right + (row / PANEL * steps + step) * BLOCK_STEP + row % PANEL / 16 * TILE, [&](int64_t r) {
                    const float* from = panels + tile.at(row + r, step * STEP);
                    return row + r < tile.height ? pairs_of(load(from), load(from + 16)) : Vec{};
                });
    }

    static void attend(const Tile& tile, Space<TileUnit>& space, int64_t start, const Segment<uint16_t>& segment,
                       Ahead<uint16_t>& ahead) {
        const bool lanes = tile.height > FEW_QUERIES;  // of any width: keys are multiplied as they lie
        ahead.spread(segment.count, ceil_div(segment.count, STEP) * (STEPS_A_PRODUCT + STEP / 2) + 2 * STEPS_BETWEEN);
        if (lanes) {
            score_keys(tile, space, start, segment, ahead);
            weigh_in_lanes<TileUnit>(tile, space, start, segment.count);
            turn_weights(tile, space, start, segment.count);
        } else {
            score_rows(tile, space, segment, ahead);
            ahead.step(STEPS_BETWEEN);
            weigh_rows<TileUnit>(tile, space, start, segment.count);
            lay_out_weights(tile, segment.count, space.scores, space.weights);
        }
        pack_all_values(segment, ahead, space.right);
        for (int64_t panel = 0; panel < ceil_div(tile.a.width, PANEL); ++panel) {
            const uint16_t* right = space.right + panel * PairPanels::right_size(SEGMENT);
            for (int64_t row = 0; row < tile.height; row += BLOCK) {
                const Reach reach = lanes ? space.lanes[row / PANEL].reach(start, segment.count) : Reach{0, segment.count};
                if (!reach.is_empty()) multiply_weights(tile, space, row, right, panel, reach);
            }
        }
        ahead.step(STEPS_BETWEEN);
        lanes ? merge_in_lanes(tile, space, start, segment.count) : merge_rows(tile, space, start, segment.count);
    }

    // Calls body(key, low, high) for every 32 keys.
    template <class Body>
    static void each_keys(const Segment<uint16_t>& segment, Ahead<uint16_t>& ahead, uint16_t* copy, Body&& body) {
        const int64_t copied = 16 * ceil_div(segment.a.width, STEP) * STEP;
        for (int64_t key = 0; key < segment.count; key += BLOCK) {
            ahead.step(STEPS_A_PRODUCT);
            body(key, key_rows(segment, key, copy), key_rows(segment, key + 16, copy + copied));
        }
    }

    // scores [panel of queries][SEGMENT][PANEL], of what each panel reaches
    static void score_keys(
        const Tile& tile, Space<TileUnit>& space, int64_t start, const Segment<uint16_t>& segment, Ahead<uint16_t>& ahead) {
        const int64_t steps = ceil_div(tile.a.width, STEP);
        each_keys(segment, ahead, space.right, [&](int64_t key, const KeyRows& low, const KeyRows& high) {
            for (int64_t row = 0; row < tile.height; row += PANEL) {
                const Reach reach = space.lanes[row / PANEL].reach(start, segment.count);
                if (key < reach.from || key >= reach.to) continue;
                const auto kernel = tile.height - row <= 16 ? multiply_keys<true> : multiply_keys<false>;
                float* sums = space.scores + (row / PANEL * SEGMENT + key) * PANEL;
                kernel(low, high, space.queries + row / PANEL * steps * BLOCK_STEP, sums, steps);
            }
        });
    }

    // scores as rows, for FEW_QUERIES of them at most
    static void score_rows(
        const Tile& tile, Space<TileUnit>& space, const Segment<uint16_t>& segment, Ahead<uint16_t>& ahead) {
        float* sums = space.partial;  // [32][PANEL], until they are turned
        each_keys(segment, ahead, space.right, [&](int64_t key, const KeyRows& low, const KeyRows& high) {
            multiply_keys<true>(low, high, space.queries, sums, ceil_div(tile.a.width, STEP));
            for (int64_t half = 0; half < BLOCK; half += 16)
                turn_square(space.scores + tile.at(0, key + half), tile.height,
                            [&](int64_t j) { return load(sums + (half + j) * PANEL); });
        });
    }

    // All values of a segment, [panel][pairs of keys][2 tiles].
    static void pack_all_values(const Segment<uint16_t>& segment, Ahead<uint16_t>& ahead, uint16_t* right) {
        const Interleave interleave;
        for (int64_t key = 0; key < ceil_div(segment.count, STEP) * STEP; key += 2) {
            uint16_t* line = right + key / STEP * BLOCK_STEP + key % STEP / 2 * 32;
            ahead.step();
            for (int64_t i = 0; i < segment.a.width; i += PANEL, line += PairPanels::right_size(SEGMENT))
                interleave(values(segment, key, i), values(segment, key + 1, i), line);
        }
    }

    // Weights [panel of queries][SEGMENT][PANEL] to left operands [block of queries][steps of SEGMENT].
    static void turn_weights(const Tile& tile, Space<TileUnit>& space, int64_t start, int64_t count) {
        for (int64_t row = 0; row < tile.height; row += 16) {
            const Reach reach = space.lanes[row / PANEL].reach(start, count);
            for (int64_t at = reach.from; at < reach.to; at += STEP) {
                const float* from = space.scores + (row / PANEL * SEGMENT + at) * PANEL + row % PANEL;
                uint16_t* left = space.weights + weights_at(row / BLOCK, at) + row % BLOCK / 16 * TILE;
                turn_pairs(left, [&](int64_t j) {
                    const int64_t key = at + 2 * j;
                    const BitVec first = key < reach.to ? (BitVec)load(from + 2 * j * PANEL) : BitVec{};
                    const BitVec second = key + 1 < reach.to ? (BitVec)load(from + (2 * j + 1) * PANEL) : BitVec{};
                    return (Vec)((first >> 16) | (second & 0xffff0000U));
                });
            }
        }
    }

    // Where the weights of keys from `key` on lie for a block of queries.
    static int64_t weights_at(int64_t block, int64_t key) { return (block * SEGMENT + key) / STEP * BLOCK_STEP; }

    // Weights in rows to left operands, FEW_QUERIES at most. Rows that are not there keep what they hold: their sums are not
    // used.
    static void lay_out_weights(const Tile& tile, int64_t count, const float* panels, uint16_t* left) {
        for (int64_t step = 0; step < ceil_div(count, STEP); ++step)
            for (int64_t r = 0; r < tile.height; ++r) {
                const float* from = panels + tile.at(r, step * STEP);
                auto* to = reinterpret_cast<float*>(left + step * BLOCK_STEP + r * STEP);
                store(to, pairs_of(load(from), load(from + 16)));
            }
    }

    // A block of weights times a panel of values, to where partial results lie in panels.
    static void multiply_weights(const Tile& tile, Space<TileUnit>& space, int64_t row, const uint16_t* values,
                                 int64_t panel, Reach reach) {
        const uint16_t* weights = space.weights + weights_at(row / BLOCK, reach.from);
        const auto kernel = tile.height - row <= 16 ? multiply<true> : multiply<false>;
        kernel(weights, values + reach.from / STEP * BLOCK_STEP, space.partial + (panel * tile.padded + row) * PANEL,
               ceil_div(reach.to - reach.from, STEP));
    }
};

}  // namespace

void attention_amx(Context& context, const Attention* sets, int64_t count) {
    attend_all<TileUnit, uint16_t>(context, sets, count);
}

}  // namespace penstock
