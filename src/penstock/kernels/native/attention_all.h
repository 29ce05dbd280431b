// All tiles of some sets, shared out over the threads.
//
// A task is a tile in one key head. Where one has so many keys that the other threads would wait for it, it is cut: its
// segments are tasks of their own, each kept as it was found from empty, and merged left to right behind all tasks. A
// thread that has the tile alone does the same in the same order, so no bit depends on what is whole.
#pragma once

#include <vector>

#include "attention.h"

namespace penstock {
namespace {

constexpr int64_t KEPT_BYTES = int64_t{32} << 20;  // for the segments of cut tiles, at most; memory.py counts them
constexpr int64_t PARTS = 2;                       // a thread's share of all segments, in parts: more than one is cut
constexpr int64_t FEW_SEGMENTS = 4;                // are not worth it
constexpr int64_t TASKS_AT_ONCE = 8;               // that a thread takes of small ones

// What there is of all rows before the tile's first segment, and what becomes of them behind its last.
template <class Unit>
void take_states(const Tile& tile, Space<Unit>& space) {
    for (int64_t r = 0; tile.begin() && r < tile.height; ++r) take_state(tile, space, r, tile.state(r));
}

template <class Unit, class T>
void finish_tile(const Tile& tile, const Space<Unit>& space) {
    for (int64_t r = 0; r < tile.height; ++r)
        tile.a.kept ? keep_state(tile, space, r, tile.state(r)) : put_out<Unit, T>(tile, space, r);
}

template <class Unit, class T>
void lay_out_queries(const Tile& tile, Space<Unit>& space) {
    gather_queries<T>(tile, space.panels);
    Unit::lay_out_queries(tile, space.panels, space.queries);
}

// Is its first segment there already? `later` is what the thread attends to behind it, or null.
template <class Unit, class T>
void attend_tile(const Tile& tile, Space<Unit> space, bool is_there, const Tile* later) {
    space.look_at(tile);
    lay_out_queries<Unit, T>(tile, space);
    take_states(tile, space);
    Ahead<T> ahead(tile, tile.start(), tile.end(), is_there, later);
    for (int64_t start = tile.start(); start < tile.end(); start += SEGMENT)
        Unit::attend(tile, space, start, tile.template segment<T>(start), ahead);
    finish_tile<Unit, T>(tile, space);
}

// Are all values of positions `from` .. `to` finite?
template <class T>
bool are_finite(const Tile& tile, int64_t from, int64_t to) {
    Vec differences{};
    for (int64_t start = std::max(tile.begin(), from / SEGMENT * SEGMENT); start < to; start += SEGMENT) {
        const Segment<T> segment = tile.template segment<T>(start);
        for (int64_t at = std::max<int64_t>(from - start, 0); at < at_most(to - start, SEGMENT); ++at)
            for (int64_t i = 0; i < tile.a.width; i += LANES) {
                const Vec values = segment.load(tile.a.values, at, i);
                differences += values - values;
            }
    }
    bool found = true;
    for (int lane = 0; lane < LANES; ++lane) found &= differences[lane] == 0.0F;
    return found;
}

// A value weighs nothing for a query that does not see its key; but nothing times what is not finite is not nothing.
// So where some queries see such a value and others do not, each goes alone.
template <class T>
bool may_go_together(const Tile& tile) {
    int64_t all_from = tile.start(), all_to = tile.end();
    for (int64_t query = 0; query < tile.count; ++query) {
        all_from = std::max(all_from, tile.lowest(query * tile.group));
        all_to = std::min(all_to, tile.positions()[query] + 1);
    }
    return are_finite<T>(tile, tile.start(), all_from) && are_finite<T>(tile, all_to, tile.end());
}

// A tile in one key head whose segments are tasks: what each finds is kept.
struct LongTile {
    Tile tile;
    int64_t start, segments;
    float* kept;  // [segments][height][state_floats]

    LongTile(const Tile& all, int64_t count) : tile(all), start(all.start()), segments(count), kept(nullptr) {}
    int64_t floats() const { return segments * tile.height * tile.a.state_floats(); }
    float* state(int64_t segment, int64_t row) const {
        return kept + (segment * tile.height + row) * tile.a.state_floats();
    }
};

// Segments `first` .. `end` of a cut tile.
template <class Unit, class T>
void attend_segments(const LongTile& whole, int64_t first, int64_t end, Space<Unit> space) {
    const Tile& tile = whole.tile;
    lay_out_queries<Unit, T>(tile, space);
    const int64_t behind = std::min(whole.start + end * SEGMENT, tile.end());
    Ahead<T> ahead(tile, whole.start + first * SEGMENT, behind, false, nullptr);
    for (int64_t segment = first; segment < end; ++segment) {
        const int64_t start = whole.start + segment * SEGMENT;
        const Segment<T> keys = tile.template segment<T>(start);
        const Tile rest = tile.beginning(start);
        space.look_at(rest);
        Unit::attend(rest, space, start, keys, ahead);
        for (int64_t r = 0; r < tile.height; ++r)
            if (tile.sees(r, start, start + SEGMENT)) keep_state(tile, space, r, whole.state(segment, r));
    }
}

template <class Unit, class T>
void merge_segments(const LongTile& whole, Space<Unit> space) {
    const Tile& tile = whole.tile;
    take_states(tile, space);
    Space<Unit> found = space;  // a segment, where `merge_row` looks for it
    found.values = space.partial;
    found.highest = space.partial_highest;
    found.total = space.partial_total;
    for (int64_t segment = 0; segment < whole.segments; ++segment) {
        const int64_t start = whole.start + segment * SEGMENT;
        for (int64_t r = 0; r < tile.height; ++r) {
            if (!tile.sees(r, start, start + SEGMENT)) continue;
            take_state(tile, found, r, whole.state(segment, r));
            merge_row(tile, space, r, tile.lowest(r) / SEGMENT * SEGMENT == start);
        }
    }
    finish_tile<Unit, T>(tile, space);
}

// The tasks of some sets: pieces of the tiles that are cut, then all tiles and key heads, of which those are done.
template <class Unit, class T>
struct TileTasks {
    struct Piece {
        size_t tile;
        int64_t first, end;
    };
    const Attention* sets;
    int64_t count, tiles = 0, bytes = 0;
    int64_t small = 0;  // tasks, the last ones: a query behind few keys
    std::vector<LongTile> long_tiles;
    std::vector<Piece> pieces;

    TileTasks(Context& context, const Attention* first, int64_t number) : sets(first), count(number) {
        for (const Attention* a = sets; a < sets + count; ++a) {
            tiles += a->tiles * a->kv_heads;
            bytes = std::max(bytes, Space<Unit>::bytes(*a));
        }
        if (context.pool.threads() > 1) look_at_tiles(context);
    }
    int64_t tasks() const { return static_cast<int64_t>(pieces.size()) + tiles; }

    // Number `task` of the tiles.
    Tile tile(int64_t task) const {
        const Attention* a = sets;
        for (; task >= a->tiles * a->kv_heads; ++a) task -= a->tiles * a->kv_heads;
        return Tile(*a, task / a->kv_heads, task % a->kv_heads, Unit::ROWS);
    }
    bool is_cut(const Tile& tile) const {
        return std::any_of(long_tiles.begin(), long_tiles.end(), [&](const LongTile& whole) {
            return &whole.tile.a == &tile.a && whole.tile.tile == tile.tile && whole.tile.head == tile.head;
        });
    }

  private:
    static int64_t segments(const Tile& tile) {
        return ceil_div(std::max<int64_t>(0, tile.end() - tile.start()), SEGMENT);
    }

    template <class Body>
    void each_tile(Body&& body) {
        for (const Attention* a = sets; a < sets + count; ++a)
            for (int64_t number = 0; number < a->tiles; ++number) body(*a, number, Tile(*a, number, 0, Unit::ROWS));
    }
    void look_at_tiles(Context& context) {
        int64_t all = 0;
        each_tile([&](const Attention& a, int64_t, const Tile& tile) {
            all += segments(tile) * a.kv_heads;
            small = tile.count == 1 && segments(tile) <= FEW_SEGMENTS ? small + a.kv_heads : 0;
        });
        cut_long_tiles(context, all);
    }
    void cut_long_tiles(Context& context, int64_t all) {
        const int64_t most = std::max(FEW_SEGMENTS, all / (PARTS * context.pool.threads()));
        int64_t floats = 0;
        each_tile([&](const Attention& a, int64_t number, const Tile& tile) {
            if (segments(tile) <= most) return;
            for (int64_t head = 0; head < a.kv_heads; ++head) {
                const LongTile whole(Tile(a, number, head, Unit::ROWS), segments(tile));
                const int64_t with = (floats + whole.floats()) * static_cast<int64_t>(sizeof(float));
                if (with > KEPT_BYTES || !may_go_together<T>(whole.tile)) continue;
                floats += whole.floats();
                long_tiles.push_back(whole);
            }
        });
        float* kept = floats ? context.segments.reserve_array<float>(static_cast<size_t>(floats)) : nullptr;
        for (LongTile& whole : long_tiles) {
            const auto number = static_cast<size_t>(&whole - long_tiles.data());
            whole.kept = kept, kept += whole.floats();
            for (int64_t first = 0; first < whole.segments; first += most)
                pieces.push_back({number, first, std::min(first + most, whole.segments)});
        }
    }
};

// A thread's tasks: of the small ones, which come last, it takes several at once, so that threads rarely meet.
class Hand {
  public:
    Hand(Tasks& tasks, int64_t small, int threads) : tasks_(tasks), small_(small), threads_(threads) {}
    int64_t take() {
        const int64_t most = tasks_.left() <= small_ ? TASKS_AT_ONCE : 1;
        if (mine_.first == mine_.end) mine_ = tasks_.take_several(most, threads_);
        return mine_.first < mine_.end ? mine_.first++ : -1;
    }
    // The next task, to know it early; -1 where another thread would go without.
    int64_t take_early() { return mine_.first < mine_.end || tasks_.left() >= threads_ ? take() : -1; }

  private:
    Tasks& tasks_;
    const int64_t small_;
    const int threads_;
    Tasks::Several mine_{0, 0};
};

// Sets that do not need each other's states, as one run.
template <class Unit, class T>
void attend_all(Context& context, const Attention* sets, int64_t count) {
    const TileTasks<Unit, T> work(context, sets, count);
    context.reserve_own(work.bytes);
    const int threads = context.pool.threads();
    const int64_t pieces = static_cast<int64_t>(work.pieces.size());
    context.pool.run(work.tasks(), [&](Tasks& all, int thread) {
        float* memory = context.own_array<float>(thread);
        Unit::begin();
        Hand hand(all, work.small, threads);
        bool is_there = false;  // a tile's first segment: it came while the tile before was attended to
        for (int64_t task = hand.take(), following; task >= 0; task = following < 0 ? hand.take() : following) {
            following = hand.take_early();  // to know what to fetch
            if (task < pieces) {
                const auto& piece = work.pieces[static_cast<size_t>(task)];
                const LongTile& whole = work.long_tiles[piece.tile];
                attend_segments<Unit, T>(whole, piece.first, piece.end, Space<Unit>(whole.tile.a, memory));
                continue;
            }
            const Tile tile = work.tile(task - pieces), later = work.tile((following < 0 ? task : following) - pieces);
            if (work.is_cut(tile)) continue;
            const Tile* after = following < 0 ? nullptr : &later;
            const Space<Unit> space(tile.a, memory);
            if (tile.count == 1 || may_go_together<T>(tile))
                attend_tile<Unit, T>(tile, space, is_there, after);
            else
                for (int64_t query = 0; query < tile.count; ++query)
                    attend_tile<Unit, T>(tile.only(query, Unit::ROWS), space, is_there, after);
            is_there = after != nullptr;
        }
        Unit::end();
    });
    if (work.long_tiles.empty()) return;
    context.pool.run(static_cast<int64_t>(work.long_tiles.size()), [&](Tasks& all, int thread) {
        for (int64_t task; (task = all.take()) >= 0;) {
            const LongTile& whole = work.long_tiles[static_cast<size_t>(task)];
            merge_segments<Unit, T>(whole, Space<Unit>(whole.tile.a, context.own_array<float>(thread)));
        }
    });
}

}  // namespace
}  // namespace penstock
