// AMX tiles: their configuration, and the product of a block of rows with a panel that everything on AMX is made of.
//
// Registers 0 to 3 hold sums (32 x 32 float32), 4 and 5 rows of x, 6 and 7 columns of the weight.
#pragma once

#include <immintrin.h>

#include "packing.h"
#include "vectors.h"

namespace penstock {
namespace {

constexpr int64_t BLOCK = 32;              // rows of x in a block: two tiles
constexpr int64_t BLOCK_STEP = 2 * TILE;   // elements of a block, or of a panel, at one step along K
constexpr int LINE = 64 / sizeof(uint16_t);
constexpr int64_t STEPS_AHEAD = 8;

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
PENSTOCK_INLINE void save_sums(float* sums) {
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    if (HALF) return;
    _tile_stored(2, sums + LOW, PANEL * 4);
    _tile_stored(3, sums + LOW + 16, PANEL * 4);
}

// Adds a block of x times a panel over `steps` steps of K. HALF: only the first 16 rows are wanted. STREAMED: the panel
// comes from memory and is used once, so it is fetched ahead.
template <bool HALF, bool STREAMED>
PENSTOCK_INLINE void add_steps(const uint16_t* x, const uint16_t* w, int64_t steps) {
    for (int64_t step = 0; step < steps; ++step, x += BLOCK_STEP, w += BLOCK_STEP) {
        if (STREAMED)
            for (int64_t at = 0; at < BLOCK_STEP; at += LINE)
                _mm_prefetch(reinterpret_cast<const char*>(w + STEPS_AHEAD * BLOCK_STEP + at), _MM_HINT_T1);
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
}

// sums [32][PANEL] = a block of x times a panel.
template <bool HALF, bool STREAMED = false>
void multiply(const uint16_t* x, const uint16_t* w, float* sums, int64_t steps) {
    clear_sums<HALF>();
    add_steps<HALF, STREAMED>(x, w, steps);
    save_sums<HALF>(sums);
}

}  // namespace
}  // namespace penstock
