// bfloat16 products in AMX tiles: 16 x 32 times 32 x 16, summed in float32.
//
// A block of the result is 32 rows x 32 columns in four tiles. A row's sums run over K in steps of 32 from 0, whatever
// the number of rows: rows that are not there are zeros. They stay in their tiles for all of K: to cut K, so that a part
// of the panel stays in the first-level cache, costs more than it saves (docs/log.md, 2026-11-29). The second-level cache
// holds a chunk of rows and the panel. Where there is more than one block, what comes next is left to the processor's own
// prefetching, for lines that are asked for beside the arithmetic take the same few buffers that feed it.
#include "chunks.h"
#include "finish.h"
#include "kernels_amx.h"
#include "register_loop.h"
#include "rows.h"
#include "tiles.h"

namespace penstock {
namespace {

constexpr int64_t CACHED_BYTES = 1 << 20;  // of laid-out rows; processors with AMX have 2 MiB a core

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

constexpr int64_t ROWS_A_TASK = 4;  // that are laid out

// One panel times the blocks of a chunk of rows; sums [32][PANEL].
void multiply_panel(const Product& p, const uint16_t* rows, int64_t panel, int64_t first, int64_t last, float* sums) {
    const int64_t steps = ceil_div(p.k, STEP);
    const auto* w = static_cast<const uint16_t*>(p.weight) + panel * steps * BLOCK_STEP;
    const bool streamed = last - first == 1;
    for (int64_t block = first; block < last; ++block) {
        const int64_t left = at_most(p.rows - block * BLOCK, BLOCK);
        const auto kernel = left <= 16 ? streamed ? multiply<true, true> : multiply<true>
                                       : streamed ? multiply<false, true> : multiply<false>;
        claim(p, panel, block * BLOCK, left);
        kernel(rows + block * steps * BLOCK_STEP, w, sums, steps);
        finish<uint16_t>(p, sums, panel, block * BLOCK, left);
    }
}

struct Configured {
    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }
};

}  // namespace

void linear_amx(Context& context, const Product& p) {
    const int64_t steps = ceil_div(p.k, STEP), panels = p.panels(), blocks = ceil_div(p.rows, BLOCK);
    auto* rows = context.rows.reserve_array<uint16_t>(static_cast<size_t>(blocks * steps * BLOCK_STEP));
    lay_rows<uint16_t>(context, p, blocks * BLOCK / ROWS_A_TASK, [](int64_t task) { return task * ROWS_A_TASK; },
                       [&](int64_t row, const uint16_t* x) { lay_out(x, row, p.k, rows); });
    const Chunks chunks(blocks, steps * BLOCK_STEP * 2, CACHED_BYTES);
    context.reserve_own(BLOCK * PANEL * static_cast<int64_t>(sizeof(float)));
    each_panel<Configured>(context, chunks, panels, [&](int64_t panel, int64_t begin, int64_t end, int thread) {
        multiply_panel(p, rows, panel, begin, end, context.own_array<float>(thread));
    });
}

double register_loop_amx(Context& context, int64_t rounds) {
    constexpr int64_t STEPS = 8, BYTES = STEPS * BLOCK_STEP * 2, TURNS = 32;  // a block and a panel: 32 KiB
    const double operations = 2.0 * BLOCK * PANEL * STEP * STEPS * TURNS;
    constexpr int64_t ALL = 2 * BYTES + BLOCK * PANEL * 4, CALLS = PRODUCTS_A_ROUND / TURNS;
    return time_rounds<Configured, CALLS>(context, rounds, ALL, operations, [](char* memory) {
        const auto *x = reinterpret_cast<const uint16_t*>(memory), *w = x + STEPS * BLOCK_STEP;
        clear_sums<false>();
        for (int64_t turn = 0; turn < TURNS; ++turn) add_steps<false, false>(x, w, STEPS);
        save_sums<false>(reinterpret_cast<float*>(memory + 2 * BYTES));
    });
}

}  // namespace penstock
