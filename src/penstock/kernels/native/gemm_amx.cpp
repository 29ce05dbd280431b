// bfloat16 products in AMX tiles: 16 x 32 times 32 x 16, summed in float32.
//
// A block of the result is 32 rows x 32 columns in four tiles. A row's sums run over K in steps of 32 from 0, whatever
// the number of rows: rows that are not there are zeros. The sums leave and enter the tiles as whole float32 numbers,
// so how K is cut for the caches changes nothing.
#include "chunks.h"
#include "finish.h"
#include "kernels_amx.h"
#include "register_loop.h"
#include "rows.h"
#include "tiles.h"

namespace penstock {
namespace {

constexpr int64_t CACHED_BYTES = 1 << 20;  // of laid-out rows; processors with AMX have 2 MiB a core
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

constexpr int64_t ROWS_A_TASK = 4;  // that are laid out

using Multiply = void (*)(const uint16_t*, const uint16_t*, float*, int64_t, bool, const uint16_t*);

template <int LINES>
Multiply kernel_for(bool half) {
    return half ? multiply<true, LINES> : multiply<false, LINES>;
}

// While one panel is multiplied the next one is fetched: its BLOCK_STEP a step, shared by the blocks of rows, so that
// memory is read all the time and not only while the first block waits for it.
struct Fetching {
    int64_t lines;  // a step and a block

    explicit Fetching(int64_t blocks) : lines(BLOCK_STEP / LINE) {
        while (lines > 2 && lines * blocks > BLOCK_STEP / LINE) lines /= 2;
    }
    // Where block number `index` begins within a step; the step's end and beyond: nothing is left for it.
    int64_t offset(int64_t index) const { return index * lines * LINE; }
    Multiply kernel(int64_t index, bool half) const {
        if (offset(index) >= BLOCK_STEP) return kernel_for<0>(half);
        return lines >= 32 ? kernel_for<32>(half)
             : lines >= 16 ? kernel_for<16>(half)
             : lines >= 8  ? kernel_for<8>(half)
             : lines >= 4  ? kernel_for<4>(half)
                           : kernel_for<2>(half);
    }
};

// One panel times the blocks of a chunk of rows; sums [blocks of the chunk][32][PANEL].
void multiply_panel(const Product& p, const uint16_t* rows, int64_t panel, int64_t first, int64_t last, float* sums) {
    const int64_t steps = ceil_div(p.k, STEP);
    const int64_t at_once = last - first > 1 ? STEPS_AT_ONCE : steps;
    const Fetching fetching(last - first);
    const auto* w = static_cast<const uint16_t*>(p.weight) + panel * steps * BLOCK_STEP;
    for (int64_t step = 0; step < steps; step += at_once) {
        const int64_t count = at_most(steps - step, at_once);
        for (int64_t block = first; block < last; ++block) {
            const int64_t left = at_most(p.rows - block * BLOCK, BLOCK);
            float* mine = sums + (block - first) * BLOCK * PANEL;
            if (step + count == steps) claim(p, panel, block * BLOCK, left);
            const Multiply kernel = fetching.kernel(block - first, left <= 16);
            const uint16_t* now = w + step * BLOCK_STEP;
            const uint16_t* later = now + steps * BLOCK_STEP + fetching.offset(block - first);
            kernel(rows + (block * steps + step) * BLOCK_STEP, now, mine, count, step == 0, later);
            if (step + count == steps) finish<uint16_t>(p, mine, panel, block * BLOCK, left);
        }
    }
}

struct Configured {
    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }
};

}  // namespace

void linear_amx(Context& context, const Product& p) {
    const int64_t steps = ceil_div(p.k, STEP), panels = ceil_div(p.n, PANEL), blocks = ceil_div(p.rows, BLOCK);
    auto* rows = context.rows.reserve_array<uint16_t>(static_cast<size_t>(blocks * steps * BLOCK_STEP));
    lay_rows<uint16_t>(context, p, blocks * BLOCK / ROWS_A_TASK, [](int64_t task) { return task * ROWS_A_TASK; },
                       [&](int64_t row, const uint16_t* x) { lay_out(x, row, p.k, rows); });
    const Chunks chunks(blocks, steps * BLOCK_STEP * 2, CACHED_BYTES);
    context.reserve_own(ceil_div(blocks, chunks.count) * BLOCK * PANEL * static_cast<int64_t>(sizeof(float)));
    each_panel<Configured>(context, chunks, panels, [&](int64_t panel, int64_t begin, int64_t end, int thread) {
        multiply_panel(p, rows, panel, begin, end, context.own_array<float>(thread));
    });
}

double register_loop_amx(Context& context, int64_t rounds) {
    constexpr int64_t STEPS = 8, BYTES = STEPS * BLOCK_STEP * 2;  // a block and a panel: 32 KiB
    const double operations = 2.0 * BLOCK * PANEL * STEP * STEPS;
    return time_rounds<Configured>(context, rounds, 2 * BYTES + BLOCK * PANEL * 4, operations, [](char* memory) {
        const auto *x = reinterpret_cast<const uint16_t*>(memory), *w = x + STEPS * BLOCK_STEP;
        multiply<false, 0>(x, w, reinterpret_cast<float*>(memory + 2 * BYTES), STEPS, false, nullptr);
    });
}

}  // namespace penstock
