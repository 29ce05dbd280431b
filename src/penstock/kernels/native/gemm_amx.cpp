// bfloat16 products in AMX tiles: 16 x 32 times 32 x 16, summed in float32.
//
// A block of the result is 32 rows x 32 columns in four tiles. A row's sums run over K in steps of 32 from 0, whatever
// the number of rows: rows that are not there are zeros. The sums leave and enter the tiles as whole float32 numbers,
// so how K is cut for the caches changes nothing.
#include <immintrin.h>

#include "chunks.h"
#include "finish.h"
#include "packing.h"

namespace penstock {
namespace {

constexpr int64_t BLOCK = 32;                     // rows of x in a block: two tiles
constexpr int64_t BLOCK_STEP = 2 * TILE;          // elements of a block, or of a panel, at one step along K
constexpr int64_t STEPS_AT_ONCE = 16;             // of K: 32 KiB of a panel, which then stays in the first-level cache
constexpr int64_t AHEAD = 4 * BLOCK_STEP;         // how far before its use a weight is fetched from memory
constexpr int LINE = 64 / sizeof(uint16_t);

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_a_row[16] = {};
    uint8_t rows[16] = {};
};

void configure_tiles() {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.bytes_a_row[tile] = 64;
        config.rows[tile] = 16;
    }
    // GCC 12 takes the next line for a read of one byte and may drop the stores to the others.
    __asm__ volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

// Lays 32 rows of x out as [step][half][16 rows][32]: in x itself the rows of a tile are k apart, often a power of
// two, and would fall on the same few sets of the first-level cache.
void lay_out(const Product& p, int64_t block, uint16_t* to) {
    const auto* x = static_cast<const uint16_t*>(p.x);
    const int64_t steps = ceil_div(p.k, STEP);
    for (int64_t r = 0; r < BLOCK; ++r) {
        const int64_t row = block * BLOCK + r;
        const int64_t valid = row < p.rows ? p.k : 0;
        uint16_t* line = to + r / 16 * TILE + r % 16 * STEP;
        for (int64_t step = 0; step < steps; ++step, line += BLOCK_STEP) {
            const int64_t left = valid - step * STEP;
            if (left >= STEP) {
                _mm512_store_si512(line, _mm512_loadu_si512(x + row * p.x_stride + step * STEP));
                continue;
            }
            std::memset(line, 0, 64);
            if (left > 0) std::memcpy(line, x + row * p.x_stride + step * STEP, static_cast<size_t>(left) * 2);
        }
    }
}

PENSTOCK_INLINE void fetch_step(const uint16_t* from) {
    for (int64_t line = 0; line < BLOCK_STEP; line += LINE)
        _mm_prefetch(reinterpret_cast<const char*>(from + line), _MM_HINT_T0);
}

constexpr int64_t LOW = 16 * PANEL;  // where the sums of a block's lower 16 rows begin

template <bool HALF>
PENSTOCK_INLINE void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    if (HALF) return;
    _tile_zero(2);
    _tile_zero(3);
}

template <bool HALF>
PENSTOCK_INLINE void load_sums(const float* sums) {
    _tile_loadd(0, sums, PANEL * 4);
    _tile_loadd(1, sums + 16, PANEL * 4);
    if (HALF) return;
    _tile_loadd(2, sums + LOW, PANEL * 4);
    _tile_loadd(3, sums + LOW + 16, PANEL * 4);
}

template <bool HALF>
PENSTOCK_INLINE void save_sums(float* sums) {
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    if (HALF) return;
    _tile_stored(2, sums + LOW, PANEL * 4);
    _tile_stored(3, sums + LOW + 16, PANEL * 4);
}

// sums [32][PANEL] += a block of x times a panel over `steps` steps of K. HALF: only the first 16 rows are wanted.
template <bool HALF, bool FETCH>
void multiply(const uint16_t* x, const uint16_t* w, float* sums, int64_t steps, bool first) {
    first ? clear_sums<HALF>() : load_sums<HALF>(sums);
    for (int64_t step = 0; step < steps; ++step, x += BLOCK_STEP, w += BLOCK_STEP) {
        if (FETCH) fetch_step(w + AHEAD);
        _tile_loadd(4, x, 64);
        _tile_loadd(6, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (HALF) continue;
        _tile_loadd(5, x + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    save_sums<HALF>(sums);
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
            if (step + count == steps) finish(p, mine, panel, block * BLOCK, left);
        }
    }
}

void linear_bfloat16(Context& context, const Product& p) {
    const int64_t steps = ceil_div(p.k, STEP), panels = ceil_div(p.n, PANEL), blocks = ceil_div(p.rows, BLOCK);
    auto* rows = context.rows.reserve_array<uint16_t>(static_cast<size_t>(blocks * steps * BLOCK_STEP));
    context.pool.each(blocks, [&](int64_t block) { lay_out(p, block, rows + block * steps * BLOCK_STEP); });
    const Chunks chunks(blocks, steps * BLOCK_STEP * 2);
    const size_t most = static_cast<size_t>(ceil_div(blocks, chunks.count) * BLOCK * PANEL);
    for (auto& memory : context.own) memory.reserve_array<float>(most);
    context.pool.run(chunks.count * panels, [&](Tasks& tasks, int thread) {
        configure_tiles();
        float* sums = context.own[static_cast<size_t>(thread)].reserve_array<float>(most);
        for (int64_t task; (task = tasks.take()) >= 0;) {
            const int64_t chunk = task / panels;
            multiply_panel(p, rows, task % panels, chunks.first(chunk), chunks.first(chunk + 1), sums);
        }
        _tile_release();
    });
}

}  // namespace

Kernels amx_kernels() {
    Kernels kernels = avx512_bf16_kernels();
    kernels.linear_bfloat16 = linear_bfloat16;
    return kernels;
}

}  // namespace penstock
