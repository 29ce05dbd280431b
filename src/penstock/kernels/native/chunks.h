// How a product is cut into tasks, and its rows so that what a thread reads again and again stays in its second-level cache.
// No number depends on it: sums over K are kept whole, in order.
#pragma once

#include "ops.h"

namespace penstock {
namespace {

// Blocks [first(i), first(i + 1)) of rows are chunk i, of no more than `cached_bytes` where a block is that small.
struct Chunks {
    int64_t blocks, count;

    Chunks(int64_t all_blocks, int64_t block_bytes, int64_t cached_bytes)
        : blocks(all_blocks), count(at_most(ceil_div(all_blocks * block_bytes, cached_bytes), all_blocks)) {}
    int64_t first(int64_t chunk) const { return blocks * chunk / count; }
};

// What a thread does around its part of a run.
struct Nothing {
    static void begin() {}
    static void end() {}
};

// Calls body(panel, begin, end, thread) for every panel and blocks begin .. end of every chunk. A thread takes neighbours,
// so that what lies behind a panel is what comes next; few enough of them that the threads end together.
template <class Around = Nothing, class Body>
void each_panel(Context& context, const Chunks& chunks, int64_t panels, Body&& body) {
    const int64_t group = at_most(ceil_div(panels, context.pool.threads() * 8), 16), groups = ceil_div(panels, group);
    context.pool.run(chunks.count * groups, [&](Tasks& tasks, int thread) {
        Around::begin();
        for (int64_t task; (task = tasks.take()) >= 0;) {
            const int64_t begin = chunks.first(task / groups), end = chunks.first(task / groups + 1);
            const int64_t first = task % groups * group;
            for (int64_t panel = first; panel < at_most(first + group, panels); ++panel) body(panel, begin, end, thread);
        }
        Around::end();
    });
}

}  // namespace
}  // namespace penstock
