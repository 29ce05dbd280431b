// bfloat16 products in AMX tiles: 16 x 32 times 32 x 16, summed in float32.
//
// A block of the result is 32 rows x 32 columns in four tiles. A row's sums run over K in steps of 32 from 0, whatever
// the number of rows: rows that are not there are zeros. The sums leave and enter the tiles as whole float32 numbers,
// so how K is cut for the caches changes nothing.
#include "chunks.h"
#include "finish.h"
#include "kernels_amx.h"
#include "rows.h"
#include "tiles.h"

namespace penstock {
namespace {

constexpr int64_t STEPS_AT_ONCE = 16;  // of K: 32 KiB of a panel, which then stays in the first-level cache

// Lays a row of x out in its block [step][half][16 rows][32]: in x itself the rows of a tile are k apart, often a power
// of two, and would fall on the same few sets of the first-level cache.
void lay_out(const uint16_t* x, int64_t row, int64_t k, uint16_t* rows) {
    const int64_t steps = ceil_div(k, STEP), valid = x ? k : 0;
    uint16_t* line = rows + row / BLOCK * steps * BLOCK_STEP + row % BLOCK / 16 * TILE + row % 16 * STEP;
    for (int64_t step = 0; step < steps; ++step, line += BLOCK_STEP) {
        const int64_t left = valid - step * STEP;
        if (left >= STEP) {
            _mm512_store_si512(line, _mm512_loadu_si512(x + step * STEP));
            continue;
        }
        std::memset(line, 0, 64);
        if (left > 0) std::memcpy(line, x + step * STEP, static_cast<size_t>(left) * 2);
    }
}

using Multiply = void (*)(const uint16_t*, const uint16_t*, float*, int64_t, bool);

Multiply choose(bool half, bool fetch) {
    if (half) return fetch ? multiply<true, true> : multiply<true, false>;
    return fetch ? multiply<false, true> : multiply<false, false>;
}

// One panel times the blocks of a chunk of rows; sums [blocks of the chunk][32][PANEL].
void multiply_panel(const Product& p, const uint16_t* rows, int64_t panel, int64_t first, int64_t last, float* sums) {
    const int64_t steps = ceil_div(p.k, STEP);
    const int64_t at_once = last - first > 1 ? STEPS_AT_ONCE : steps;
    const auto* w = static_cast<const uint16_t*>(p.weight) + panel * steps * BLOCK_STEP;
    for (int64_t step = 0; step < steps; step += at_once) {
        const int64_t count = at_most(steps - step, at_once);
        for (int64_t block = first; block < last; ++block) {
            const int64_t left = at_most(p.rows - block * BLOCK, BLOCK);
            float* mine = sums + (block - first) * BLOCK * PANEL;
            // The first block of a chunk meets each weight first: it fetches those of the following steps.
            const Multiply kernel = choose(left <= 16, block == first);
            kernel(rows + (block * steps + step) * BLOCK_STEP, w + step * BLOCK_STEP, mine, count, step == 0);
            if (step + count == steps) finish<uint16_t>(p, mine, panel, block * BLOCK, left);
        }
    }
}

}  // namespace

void linear_amx(Context& context, const Product& p) {
    const int64_t steps = ceil_div(p.k, STEP), panels = ceil_div(p.n, PANEL), blocks = ceil_div(p.rows, BLOCK);
    auto* rows = context.rows.reserve_array<uint16_t>(static_cast<size_t>(blocks * steps * BLOCK_STEP));
    lay_rows<uint16_t>(context, p, blocks * BLOCK, [&](int64_t row, const uint16_t* x) { lay_out(x, row, p.k, rows); });
    const Chunks chunks(blocks, steps * BLOCK_STEP * 2);
    context.reserve_own(ceil_div(blocks, chunks.count) * BLOCK * PANEL * static_cast<int64_t>(sizeof(float)));
    context.pool.run(chunks.count * panels, [&](Tasks& tasks, int thread) {
        configure_tiles();
        for (int64_t task; (task = tasks.take()) >= 0;) {
            const int64_t chunk = task / panels;
            const int64_t first = chunks.first(chunk), last = chunks.first(chunk + 1);
            multiply_panel(p, rows, task % panels, first, last, context.own_array<float>(thread));
        }
        _tile_release();
    });
}

}  // namespace penstock
