// Attention over paged keys and values. Included once for each instruction set, with the unit that multiplies there.
//
// Keys are reduced in segments of SEGMENT positions counted from 0, each from empty, and the segments are merged left
// to right in float32: a query's bits do not depend on how many queries, or threads, there are. A tile's queries share
// each load of keys and values. Nothing at or behind the end of a tile's context is read. Where sequences begin with
// the same blocks, a tile holds queries of several: what it finds is kept, and each query goes on from there.
//
// All matrices here lie in panels of 32 columns, [panel][rows][32], as the products want and give them. A unit has:
//   Number                 what its operands are made of
//   begin(), end()         around a thread's work
//   ROWS                   rows that it multiplies at once, at most: tiles are padded to it
//   size(rows, k)          Numbers that `rows` x `k` take as it lays them out
//   weights_size(rows)     likewise for weights of a segment; 0 where they are multiplied as they are
//   right_size(k)          Numbers for what is laid out of a segment's keys or values: of heads `k` wide, or `k` keys,
//                          whichever is more
//   lay_out_queries(...)   a tile's queries from float32 panels, and
//   attend(...)            a segment: scores, weights, and what is found merged; see attention_few.h, attention_lanes.h
//   weight(v)              an attention weight as its products hold it
#pragma once

#include <algorithm>
#include <cmath>
#include <new>

#include "ops.h"
#include "vectors.h"

namespace penstock {
namespace {

constexpr int64_t SEGMENT = 128;

// The positions of a segment that a tile sees, in one head of the cache.
template <class T>
struct Segment {
    const Attention& a;
    int64_t skipped, count, place[SEGMENT];  // where each position's row lies: looked up once, for keys and values

    // `start` counts from the beginning of the table. The first `skip` positions are in no query's window: they count
    // as zeros, for their blocks may hold anything.
    Segment(const Attention& all, const int64_t* table, int64_t head, int64_t start, int64_t skip, int64_t positions)
        : a(all), skipped(skip), count(positions) {
        int64_t block = start / a.block_tokens, offset = start % a.block_tokens;
        for (int64_t i = 0; i < count; ++i) {
            place[i] = ((table[block] * a.kv_heads + head) * a.block_tokens + offset) * a.width;
            if (++offset < a.block_tokens) continue;
            offset = 0;
            ++block;
        }
    }
    const T* row(const void* cache, int64_t i) const { return static_cast<const T*>(cache) + place[i]; }
    bool has(int64_t i) const { return i >= skipped && i < count; }
    // Numbers `at` .. of row i; zeros where it is not there, and behind its end.
    PENSTOCK_INLINE Vec load(const void* cache, int64_t i, int64_t at) const {
        return has(i) ? load_some(row(cache, i) + at, a.width - at) : Vec{};
    }
};

// The queries of a tile that share a key head, one below the other: row r is query r / group, head r % group.
struct Tile {
    const Attention& a;
    int64_t tile, head, group, first, count, last;  // its queries are `count` from `first` on; `last`: behind its keys
    int64_t from;                                   // keys before it do not count
    int64_t height, padded;                         // they make `height` rows, of `padded`

    Tile(const Attention& all, int64_t number, int64_t kv_head, int64_t multiple)
        : a(all), tile(number), head(kv_head), group(all.heads / all.kv_heads), first(0), count(0), last(a.ends[tile]),
          from(0) {
        while (count < a.queries && positions()[count] >= 0) ++count;
        stack(multiple);
    }
    // One of its queries, with the keys that it sees.
    Tile only(int64_t query, int64_t multiple) const {
        Tile one = *this;
        one.first = query;
        one.count = 1;
        one.last = std::min(last, one.positions()[0] + 1);
        one.stack(multiple);
        return one;
    }
    // All of it, as if its keys began with this segment.
    Tile beginning(int64_t start) const {
        Tile rest = *this;
        rest.from = start;
        return rest;
    }
    void stack(int64_t multiple) {
        height = count * group;
        padded = ceil_div(height, multiple) * multiple;
    }
    const int64_t* positions() const { return a.positions + tile * a.queries + first; }
    const int64_t* table() const { return a.tables + tile * a.table_blocks; }
    int64_t begin() const { return a.begins[tile]; }
    int64_t end() const { return last; }
    int64_t position(int64_t row) const { return positions()[row / group]; }
    // The first position that a row sees, or that any row of the tile does.
    int64_t lowest(int64_t row) const { return lowest_from(position(row)); }
    int64_t lowest_from(int64_t position) const { return a.window ? std::max(from, position - a.window + 1) : from; }
    int64_t lowest() const {
        int64_t found = count ? lowest(0) : from;
        for (int64_t query = 1; a.window && query < count; ++query) found = std::min(found, lowest(query * group));
        return found;
    }
    // Where the first segment begins that is left for the tile.
    int64_t start() const { return std::max(begin(), lowest() / SEGMENT * SEGMENT); }
    bool sees(int64_t row, int64_t from, int64_t to) const { return position(row) >= from && lowest(row) < to; }
    int64_t step_row(int64_t row) const { return a.rows[tile * a.queries + first + row / group]; }
    int64_t query_head(int64_t row) const { return head * group + row % group; }
    // Where a row's numbers lie in the query, or in the output.
    int64_t offset(int64_t row, int64_t stride) const { return step_row(row) * stride + query_head(row) * a.width; }
    float* state(int64_t row) const {
        return a.states + (step_row(row) * a.heads + query_head(row)) * a.state_floats();
    }
    // Its keys from `start` on, a segment at most; none behind its end.
    template <class T>
    Segment<T> segment(int64_t start) const {
        const int64_t left = end() - start, skip = std::max<int64_t>(0, lowest() - start);
        return Segment<T>(a, table(), head, start - begin(), skip, left > 0 ? at_most(left, SEGMENT) : 0);
    }
    // Where number i of a row lies in panels.
    int64_t at(int64_t row, int64_t i) const { return (i / PANEL * padded + row) * PANEL + i % PANEL; }
};

constexpr int64_t STEPS_BETWEEN = 4;  // of fetching, at once where products leave off: the memory is busy meanwhile

// What is fetched while a tile is attended to: its keys and values, if the first segment's are there those behind it, and
// those of the first segment of what comes `later`, spread evenly over all of the work. Blocks lie anywhere, so the
// processor does not see them coming; and where some lines are wanted at once, all wait for the memory.
template <class T>
class Ahead {
  public:
    // From `start` up to `end` the tile is attended to. Is its first segment there already? `later` may be null.
    Ahead(const Tile& tile, int64_t start, int64_t end, bool is_there, const Tile* later) : rest_{later, 0, 0} {
        const int64_t first = is_there ? std::min(start + SEGMENT, end) : std::max(start, tile.lowest());
        if (later) {
            rest_.from = std::max(later->start(), later->lowest());
            rest_.to = at_most(later->end(), later->start() + SEGMENT);
        }
        const int64_t keys = end - first + std::max<int64_t>(rest_.to - rest_.from, 0);
        a_key_ = ceil_div(keys * ceil_div(tile.a.width, LINE) * UNIT, std::max<int64_t>(end - start, 1));
        enter({&tile, first, end});
    }
    // What follows takes so many steps for so many keys.
    void spread(int64_t keys, int64_t steps) { each_ = keys * a_key_ / std::max<int64_t>(steps, 1); }
    PENSTOCK_INLINE void step(int64_t count = 1) {
        due_ += count * each_;
        int64_t lines = due_ / UNIT;
        due_ %= UNIT;
        while (lines > 0 && (left_ > 0 || take_block())) {
            const int64_t now = std::min(lines, left_);
            for (const T* end = key_ + now * LINE; key_ < end; key_ += LINE, value_ += LINE) {
                __builtin_prefetch(key_, 0, 2);
                __builtin_prefetch(value_, 0, 2);
            }
            lines -= now;
            left_ -= now;
        }
    }

  private:
    static constexpr int64_t LINE = 64 / static_cast<int64_t>(sizeof(T)), UNIT = 64;
    struct Part {
        const Tile* tile;
        int64_t from, to;
    };

    void enter(const Part& part) {
        now_ = part;
        left_ = 0;
    }
    __attribute__((noinline)) bool take_block() {
        if (now_.from >= now_.to) {
            if (!rest_.tile) return each_ = a_key_ = 0, false;
            enter(rest_);
            rest_.tile = nullptr;
            return take_block();
        }
        const Attention& a = now_.tile->a;
        const int64_t place = now_.from - now_.tile->begin(), offset = place % a.block_tokens;
        const int64_t count = std::min(a.block_tokens - offset, now_.to - now_.from);
        const int64_t row = (now_.tile->table()[place / a.block_tokens] * a.kv_heads + now_.tile->head) * a.block_tokens;
        key_ = static_cast<const T*>(a.keys) + (row + offset) * a.width;
        value_ = static_cast<const T*>(a.values) + (row + offset) * a.width;
        left_ = ceil_div(count * a.width, LINE);
        now_.from += count;
        return true;
    }

    Part now_{}, rest_;
    const T *key_ = nullptr, *value_ = nullptr;
    int64_t left_ = 0;                    // lines of the block
    int64_t a_key_, each_ = 0, due_ = 0;  // lines of both, for a key of the tile's work, for a step: in parts of UNIT
};

PENSTOCK_INLINE IntVec load_numbers(const int32_t* from) {
    IntVec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// Keys of a segment.
struct Reach {
    int64_t from, to;

    bool is_empty() const { return to <= from; }
};

// Which positions a panel of a tile's rows sees; rows that are not there see nothing.
struct alignas(64) Lanes {
    int32_t last[PANEL], lowest[PANEL];
    int64_t all_from, all_to, any_from, any_to;  // what all rows that are there see, and what any of them does

    Lanes(const Tile& tile, int64_t row) : all_from(0), all_to(INT64_MAX), any_from(INT64_MAX), any_to(0) {
        int64_t query = row / tile.group, head = row % tile.group;
        for (int64_t r = 0; r < PANEL; ++r) {
            last[r] = -1;
            lowest[r] = 0;
            if (row + r >= tile.height) continue;
            const int64_t position = tile.positions()[query], from = tile.lowest_from(position);
            last[r] = static_cast<int32_t>(position);
            lowest[r] = static_cast<int32_t>(from);
            all_from = std::max(all_from, from), any_from = std::min(any_from, from);
            all_to = std::min(all_to, position + 1), any_to = std::max(any_to, position + 1);
            if (++head == tile.group) ++query, head = 0;
        }
    }
    IntVec see(int lane, int64_t from, int64_t to) const {
        return (load_numbers(last + lane) >= static_cast<int32_t>(from)) &
               (load_numbers(lowest + lane) < static_cast<int32_t>(to));
    }
    bool all_see(int64_t from, int64_t to) const { return all_from <= from && to <= all_to; }
    // What any row sees of `count` keys from position `start` on, from a multiple of PANEL on. The other keys weigh
    // nothing, and to add nothing changes no sum.
    Reach reach(int64_t start, int64_t count) const {
        return {std::max<int64_t>(any_from - start, 0) / PANEL * PANEL, at_most(any_to - start, count)};
    }
};

// A thread's working memory, cut for the tiles of a set.
template <class Unit>
struct Space {
    using Number = typename Unit::Number;
    float *panels, *scores, *partial, *values, *highest, *total, *partial_highest, *partial_total;
    Number *queries, *weights, *right;
    Lanes* lanes;  // of each panel of rows

    // Whole panels too: there may be a query in every lane.
    static int64_t padded(const Attention& a) {
        const int64_t rows = ceil_div(a.queries * (a.heads / a.kv_heads), Unit::ROWS) * Unit::ROWS;
        return ceil_div(rows, PANEL) * PANEL;
    }
    static int64_t width(const Attention& a) { return ceil_div(a.width, PANEL) * PANEL; }
    static int64_t bytes(const Attention& a) {
        const int64_t numbers = Unit::size(padded(a), width(a)) + Unit::weights_size(padded(a)) +
                                Unit::right_size(std::max(width(a), SEGMENT));
        return padded(a) * (3 * width(a) + SEGMENT + 4) * 4 + numbers * static_cast<int64_t>(sizeof(Number)) +
               padded(a) / PANEL * static_cast<int64_t>(sizeof(Lanes));
    }
    Space(const Attention& a, float* memory) {
        float** parts[] = {&panels, &partial, &values};
        for (float** part : parts) *part = memory, memory += padded(a) * width(a);
        scores = memory, memory += padded(a) * SEGMENT;
        float** singles[] = {&highest, &total, &partial_highest, &partial_total};
        for (float** single : singles) *single = memory, memory += padded(a);
        lanes = reinterpret_cast<Lanes*>(memory);
        queries = reinterpret_cast<Number*>(lanes + padded(a) / PANEL);
        weights = queries + Unit::size(padded(a), width(a));
        right = weights + Unit::weights_size(padded(a));
    }
    // What each panel of rows sees.
    void look_at(const Tile& tile) {
        for (int64_t row = 0; row < tile.height; row += PANEL) new (&lanes[row / PANEL]) Lanes(tile, row);
    }
};

template <class T>
void gather_queries(const Tile& tile, float* panels) {
    const Attention& a = tile.a;
    for (int64_t r = 0; r < tile.height; ++r) {
        const T* query = static_cast<const T*>(a.query) + tile.offset(r, a.query_stride);
        for (int64_t i = 0; i < ceil_div(a.width, PANEL) * PANEL; i += LANES)
            store(panels + tile.at(r, i), load_some(query + i, a.width - i));
    }
}

PENSTOCK_INLINE Vec score_of(const Attention& a, Vec product) {
    const Vec score = product * a.scale;
    return a.cap > 0.0F ? capped(score, a.cap) : score;
}

// A row's scores to weights, from empty: e to the distance from the highest. What it does not see weighs nothing.
template <class Unit>
void weigh_row(const Tile& tile, Space<Unit>& space, int64_t r, int64_t start, int64_t panels) {
    const int64_t from = tile.lowest(r) - start, to = tile.position(r) - start + 1;
    const auto at = [&](int64_t j) { return space.scores + tile.at(r, j); };
    const auto seen = [&](int64_t j) {
        const IntVec lanes = lane_numbers();
        return (lanes < static_cast<int32_t>(to - j)) & (lanes >= static_cast<int32_t>(from - j));
    };
    const Vec nothing = splat(-INFINITY);
    Vec most = nothing;
    for (int64_t j = 0; j < panels * PANEL; j += LANES) {
        const Vec score = seen(j) ? score_of(tile.a, load(at(j))) : nothing;
        most = higher(most, score);
        store(at(j), score);
    }
    const float peak = tile.sees(r, start, start + panels * PANEL) ? highest(most) : 0.0F;
    Vec sum{};
    for (int64_t j = 0; j < panels * PANEL; j += LANES) {
        const Vec weight = seen(j) ? Unit::weight(exp(load(at(j)) - peak)) : Vec{};
        sum += weight;
        store(at(j), weight);
    }
    space.partial_highest[r] = peak;
    space.partial_total[r] = total(sum);
}

// Adds a segment to a row's state.
template <class Unit>
void merge_row(const Tile& tile, Space<Unit>& space, int64_t r, bool first) {
    const float before = first ? space.partial_highest[r] : space.highest[r], now = space.partial_highest[r];
    const float peak = before > now ? before : now;
    const Vec keep = first ? Vec{} : exp(splat(before - peak)), gain = exp(splat(now - peak));
    for (int64_t i = 0; i < ceil_div(tile.a.width, PANEL) * PANEL; i += LANES) {
        const int64_t at = tile.at(r, i);
        const Vec added = load(space.partial + at) * gain;
        store(space.values + at, first ? added : load(space.values + at) * keep + added);
    }
    const float added = space.partial_total[r] * gain[0];
    space.total[r] = first ? added : space.total[r] * keep[0] + added;
    space.highest[r] = peak;
}

template <class Unit>
void weigh_rows(const Tile& tile, Space<Unit>& space, int64_t start, int64_t count) {
    for (int64_t r = 0; r < tile.height; ++r) weigh_row(tile, space, r, start, ceil_div(count, PANEL));
}

template <class Unit>
void merge_rows(const Tile& tile, Space<Unit>& space, int64_t start, int64_t count) {
    for (int64_t r = 0; r < tile.height; ++r)
        if (tile.sees(r, start, start + count)) merge_row(tile, space, r, tile.lowest(r) / SEGMENT * SEGMENT == start);
}

// A row's state as it was kept.
template <class Unit>
void take_state(const Tile& tile, Space<Unit>& space, int64_t r, const float* from) {
    const int64_t width = Space<Unit>::width(tile.a);
    for (int64_t i = 0; i < width; i += LANES) store(space.values + tile.at(r, i), load(from + i));
    space.highest[r] = from[width];
    space.total[r] = from[width + 1];
}

template <class Unit>
void keep_state(const Tile& tile, const Space<Unit>& space, int64_t r, float* to) {
    const int64_t width = Space<Unit>::width(tile.a);
    for (int64_t i = 0; i < width; i += LANES) store(to + i, load(space.values + tile.at(r, i)));
    to[width] = space.highest[r];
    to[width + 1] = space.total[r];
}

template <class Unit, class T>
void put_out(const Tile& tile, const Space<Unit>& space, int64_t r) {
    T* out = static_cast<T*>(tile.a.out) + tile.offset(r, tile.a.out_stride);
    Vec keep = splat(1.0F), all = splat(space.total[r]);
    if (tile.a.sinks) {
        const float sink = tile.a.sinks[tile.query_head(r)], peak = std::max(sink, space.highest[r]);
        keep = exp(splat(space.highest[r] - peak));
        all = all * keep + exp(splat(sink - peak));
    }
    for (int64_t i = 0; i < tile.a.width; i += LANES) {
        const Vec values = load(space.values + tile.at(r, i));
        store_some(out + i, (tile.a.sinks ? values * keep : values) / all, tile.a.width - i);
    }
}

// Vectors load(0) .. to columns: `count` numbers of each, PANEL apart.
template <class Load>
PENSTOCK_INLINE void turn_square(float* to, int64_t count, Load&& load) {
    Vec square[LANES];
#pragma GCC unroll 16  // so that the vectors stay in registers
    for (int64_t j = 0; j < LANES; ++j) square[j] = load(j);
    turn(square);
#pragma GCC unroll 16
    for (int64_t j = 0; j < LANES; ++j)
        if (j < count) store(to + j * PANEL, square[j]);
}

}  // namespace
}  // namespace penstock
