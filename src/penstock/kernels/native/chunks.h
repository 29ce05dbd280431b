// How a product's rows are cut so that what a thread reads again and again stays in its second-level cache.
// No number depends on it: sums over K are kept whole, in order.
#pragma once

#include "ops.h"

namespace penstock {

constexpr int64_t CACHED_BYTES = 1 << 20;  // of laid-out rows; the processors at hand have 1 to 2 MiB a core

// Blocks [first(i), first(i + 1)) of rows are chunk i.
struct Chunks {
    int64_t blocks, count;

    Chunks(int64_t all_blocks, int64_t block_bytes)
        : blocks(all_blocks), count(at_most(ceil_div(all_blocks * block_bytes, CACHED_BYTES), all_blocks)) {}
    int64_t first(int64_t chunk) const { return blocks * chunk / count; }
};

}  // namespace penstock
