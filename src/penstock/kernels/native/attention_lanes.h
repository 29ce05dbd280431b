// Attention of a tile of many queries with vector instructions: a query in every lane.
//
// Keys are the rows of the product that gives the scores, so they are multiplied as they lie in the cache, and its
// result, [key][query], is what weights are for the next product: nothing is turned but the tile's queries, once.
// Every number comes from the same operations in the same order as where a tile has few queries (attention_few.h).
//
// Of a unit that has `attend_lanes` its `Side` says what the rows of a product are made of:
//   Left, depth(k)     as in blocks.h
//   keep_key           a key of the cache to Lefts
//   turn_rows          LANES rows, of which row(r, i) gives numbers i .. of number r, to Lefts PANEL apart
//   Product            of a block of rows whose Lefts lie DOWN apart, with Lefts of a row ALONG apart
// and of itself keep<N>(to, key, weights): LANES queries' weights of N keys, which become what is multiplied, to Lefts
// [depth of keys][PANEL] in the place of scores [key][PANEL].
#pragma once

#include "activations.h"
#include "attention.h"
#include "blocks.h"

namespace penstock {
namespace {

constexpr int64_t FEW_QUERIES = 16;  // rows: up to so many are worth no panel of their own
constexpr int64_t WIDEST = 256;      // of heads

// Lefts from key to key: an odd number of cache lines apart.
template <class Side>
constexpr int key_stride() {
    return static_cast<int>(Side::depth(WIDEST)) + 16;
}

// Rows and weights as float32.
struct WideSide {
    using Left = float;

    static constexpr int64_t depth(int64_t k) { return k; }
    static const float* rows(const Tile&, const float* panels, int64_t, float*) { return panels; }

    template <class T>
    static constexpr int PARTS = static_cast<int>(sizeof(float) / sizeof(T));
    static constexpr int64_t KEYS = 1;

    static PENSTOCK_INLINE Vec spread(float x) { return splat(x); }
    static PENSTOCK_INLINE Vec add(Vec each, Vec w, Vec sum) { return fma(each, w, sum); }

    template <class T>
    static PENSTOCK_INLINE Vec part(Vec lanes, int number) {
        if (PARTS<T> == 1) return lanes;
        return (Vec)(number ? (BitVec)lanes & 0xffff0000U : (BitVec)lanes << 16);
    }

    template <class T, int VECTORS>
    static PENSTOCK_INLINE void columns(const Segment<T>& segment, int64_t key, int64_t at, Vec* found,
                                        std::integral_constant<int, VECTORS>) {
        const T* from = segment.row(segment.a.values, key) + at;
        const int64_t left = segment.a.width - at;
        for (int c = 0; c < VECTORS; ++c)
            found[c] = left >= VECTORS * LANES ? load(from + c * LANES) : load_some(from + c * LANES, left - c * LANES);
    }

    template <class T>
    static void keep_key(const Segment<T>& segment, int64_t key, float* to) {
        for (int64_t i = 0; i < segment.a.width; i += LANES) store(to + i, segment.load(segment.a.keys, key, i));
    }

    template <class Row>
    static void turn_rows(float* to, int64_t width, Row&& row) {
        for (int64_t i = 0; i < width; i += LANES)
            turn_square(to + i * PANEL, width - i, [&](int64_t r) { return row(r, i); });
    }

    template <int DOWN, int ALONG>
    struct Product {
        using Left = float;

        template <int ROWS, class W>
        static void multiply(const float* x, const W* w, float* sums, int64_t count, bool first, Fetch) {
            for (int column = 0; column < PANEL; column += 2 * LANES) {
                Strip<ROWS> strip;
                strip.begin(sums + column, first);
                for (int64_t i = 0; i < count; ++i) {
                    const float* line = w + i * PANEL + column;
                    strip.template add<DOWN>(x + i * ALONG, load(line), load(line + LANES));
                }
                strip.save(sums + column);
            }
        }
    };
};

// Queries as [panel of rows][depth of width][PANEL].
template <class Side>
void turn_queries(const Tile& tile, const float* panels, typename Side::Left* turned) {
    const int64_t width = tile.a.width;
    for (int64_t row = 0; row < tile.height; row += PANEL, turned += Side::depth(width) * PANEL)
        for (int64_t lane = 0; lane < PANEL; lane += LANES)
            Side::turn_rows(turned + lane, width, [&](int64_t r, int64_t i) {
                return row + lane + r < tile.height ? load(panels + tile.at(row + lane + r, i)) : Vec{};
            });
}

// scores [panel of rows][SEGMENT][PANEL], of what each panel reaches
template <class Side, class T>
void score_keys(const Tile& tile, const Lanes* lanes, int64_t start, const Segment<T>& segment, Ahead<T>& ahead,
                const typename Side::Left* turned, typename Side::Left* keys, float* scores) {
    constexpr int STRIDE = key_stride<Side>();
    const int64_t depth = Side::depth(tile.a.width);
    each_block(segment.count, [&](int64_t first, int64_t height) {
        for (int64_t key = first; key < first + height; ++key) {
            ahead.step();
            Side::keep_key(segment, key, keys + (key - first) * STRIDE);
        }
        for (int64_t panel = 0; panel * PANEL < tile.height; ++panel) {
            const Reach reach = lanes[panel].reach(start, segment.count);
            if (first + height <= reach.from || first >= reach.to) continue;
            const auto* queries = turned + panel * depth * PANEL;
            multiply_block<typename Side::template Product<STRIDE, 1>>(
                height, keys, queries, scores + (panel * SEGMENT + first) * PANEL, depth, true, nothing_of(queries));
        }
    });
}

// Weights of N keys from `key` on, as they are.
template <int N>
PENSTOCK_INLINE void store_weights(float* to, int64_t key, const Vec* weights) {
    each<N>([&](int j) { store(to + (key + j) * PANEL, weights[j]); });
}

// Scores of some lanes to weights, as `weigh_row` does for a row; its sum of every LANES-th weight, by halves.
template <class Unit, bool ALL>
PENSTOCK_INLINE void weigh_lanes(const Attention& a, const Lanes& lanes, int lane, int64_t start, Reach reach,
                                 float* scores, float* highest, float* total) {
    const Vec nothing = splat(-INFINITY);
    const auto seen = [&](int64_t key) {
        return ALL ? IntVec{} == IntVec{} : lanes.see(lane, start + key, start + key + 1);
    };
    const auto score_at = [&](int64_t key) { return load(scores + key * PANEL + lane); };
    float scale = a.scale;
    if (a.cap > 0.0F || scale <= 0.0F) {
        for (int64_t key = reach.from; key < reach.to; ++key)
            store(scores + key * PANEL + lane, score_of(a, score_at(key)));
        scale = 1.0F;
    }
    Vec most = nothing;  // the highest product becomes the highest score
    for (int64_t key = reach.from; key < reach.to; ++key) most = higher(most, seen(key) ? score_at(key) : nothing);
    const Vec peak = lanes.see(lane, start + reach.from, start + reach.to) ? most * scale : Vec{};
    Vec sums[LANES] = {};
    each_together(reach.to - reach.from, [&](auto number, int64_t at) {
        constexpr int N = number;
        const int64_t first = reach.from + at;
        Vec weights[N];
        each<N>([&](int j) { weights[j] = score_at(first + j) * scale - peak; });
        exp<N>(weights);
        each<N>([&](int j) { weights[j] = seen(first + j) ? weights[j] : Vec{}; });
        Unit::template keep<N>(scores + lane, first, weights);
        each<N>([&](int j) { sums[(first + j) % LANES] += weights[j]; });
    });
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    store(highest + lane, peak);
    store(total + lane, sums[0]);
}

// How rows go on from what was found before, lane by lane as `merge_row` does it: factors for both.
struct Factors {
    float keep[PANEL], gain[PANEL];

    template <class Space>
    Factors(const Lanes& lanes, int64_t row, int64_t start, int64_t count, Space& space) {
        for (int lane = 0; lane < PANEL; lane += LANES) {
            const int64_t at = row + lane;
            const IntVec begins = load_numbers(lanes.lowest + lane) & -static_cast<int32_t>(SEGMENT);
            const IntVec first = begins == static_cast<int32_t>(start);
            const IntVec merged = lanes.see(lane, start, start + count);
            const Vec now = load(space.partial_highest + at), before = first ? now : load(space.highest + at);
            const Vec peak = before > now ? before : now;
            const Vec kept = first ? Vec{} : exp(before - peak), gained = exp(now - peak);
            const Vec added = load(space.partial_total + at) * gained;
            const Vec all = first ? added : load(space.total + at) * kept + added;
            store(space.highest + at, merged ? peak : load(space.highest + at));
            store(space.total + at, merged ? all : load(space.total + at));
            store(keep + lane, kept);
            store(gain + lane, gained);
        }
    }
};

template <class Space>
void merge_lanes(const Tile& tile, Space& space, const Lanes& lanes, int64_t row, int64_t start, int64_t count) {
    const Factors factors(lanes, row, start, count, space);
    const int64_t panels = ceil_div(tile.a.width, PANEL);
    for (int64_t r = row; r < at_most(row + PANEL, tile.height); ++r) {
        if (lanes.last[r - row] < start || lanes.lowest[r - row] >= start + count) continue;
        const bool first = lanes.lowest[r - row] / SEGMENT * SEGMENT == start;
        const Vec keep = splat(factors.keep[r - row]), gain = splat(factors.gain[r - row]);
        for (int64_t i = 0; i < panels * PANEL; i += LANES) {
            const int64_t at = tile.at(r, i);
            const Vec added = load(space.partial + at) * gain;
            store(space.values + at, first ? added : load(space.values + at) * keep + added);
        }
    }
}

template <class Unit, class Space>
void weigh_in_lanes(const Tile& tile, Space& space, int64_t start, int64_t count) {
    for (int64_t row = 0; row < tile.height; row += PANEL) {
        const Lanes& lanes = space.lanes[row / PANEL];
        const Reach reach = lanes.reach(start, count);
        if (reach.is_empty()) continue;
        const bool all = lanes.all_see(start + reach.from, start + reach.to);
        for (int lane = 0; lane < PANEL; lane += LANES)
            (all ? weigh_lanes<Unit, true> : weigh_lanes<Unit, false>)(
                tile.a, lanes, lane, start, reach, space.scores + row * SEGMENT, space.partial_highest + row,
                space.partial_total + row);
    }
}

template <class Space>
void merge_in_lanes(const Tile& tile, Space& space, int64_t start, int64_t count) {
    for (int64_t row = 0; row < tile.height; row += PANEL)
        merge_lanes(tile, space, space.lanes[row / PANEL], row, start, count);
}

// A segment, for a tile of many queries whose heads are not wider than WIDEST.
template <class Unit, class Space, class T>
void attend_lanes(const Tile& tile, Space& space, int64_t start, const Segment<T>& segment, Ahead<T>& ahead) {
    using Side = typename Unit::Side;
    using Left = typename Side::Left;
    const int64_t count = segment.count, panels = ceil_div(tile.a.width, PANEL);
    ahead.spread(count, count * (1 + panels));
    score_keys<Side>(tile, space.lanes, start, segment, ahead, reinterpret_cast<const Left*>(space.queries),
                     reinterpret_cast<Left*>(space.right), space.scores);
    weigh_in_lanes<Unit>(tile, space, start, count);
    for (int64_t panel = 0; panel < panels; ++panel) {
        Unit::pack_values(segment, ahead, panel, space.right);
        for (int64_t row = 0; row < tile.height; row += PANEL) {
            const Reach reach = space.lanes[row / PANEL].reach(start, count);
            if (reach.is_empty()) continue;
            const int64_t skipped = Side::depth(reach.from), depth = Side::depth(reach.to) - skipped;
            const auto* values = space.right + reach.from * PANEL;
            const auto* all = reinterpret_cast<const Left*>(space.scores + row * SEGMENT) + skipped * PANEL;
            each_block(at_most(PANEL, tile.height - row), [&](int64_t first, int64_t height) {
                float* out = space.partial + (panel * tile.padded + row + first) * PANEL;
                multiply_block<typename Side::template Product<1, PANEL>>(height, all + first, values, out, depth, true,
                                                                          nothing_of(values));
            });
        }
    }
    merge_in_lanes(tile, space, start, count);
}

// The tiles that `attend_lanes` is for.
inline bool in_lanes(const Tile& tile) { return tile.height > FEW_QUERIES && tile.a.width <= WIDEST; }

}  // namespace
}  // namespace penstock
