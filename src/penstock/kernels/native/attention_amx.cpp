// Attention in AMX tiles, for a cache of bfloat16. Queries are what they are in bfloat16; weights are rounded to it.
#include "attention_all.h"
#include "attention_pairs.h"
#include "kernels_amx.h"
#include "tiles.h"

namespace penstock {
namespace {

struct TileUnit : PairPanels {
    static constexpr int64_t ROWS = BLOCK;
    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }
    static int64_t height(int64_t) { return BLOCK; }
    static int64_t size(int64_t rows, int64_t k) { return ceil_div(rows, BLOCK) * ceil_div(k, STEP) * BLOCK_STEP; }

    // To [step][half][16 rows][32] for each block. Rows that are not there keep what they hold: their sums are not used.
    static void lay_out(const float* panels, int64_t padded, int64_t rows, int64_t k, uint16_t* left) {
        const int64_t steps = ceil_div(k, STEP);
        for (int64_t step = 0; step < steps; ++step)
            for (int64_t r = 0; r < rows; ++r) {
                const float* from = panels + (step * padded + r) * PANEL;
                uint16_t* to = left + (r / BLOCK * steps + step) * BLOCK_STEP + r % BLOCK / 16 * TILE + r % 16 * STEP;
                store(to, load(from));
                store(to + 16, load(from + 16));
            }
    }

    static void lay_out_queries(const Tile& tile, const float* panels, uint16_t* left) {
        lay_out(panels, tile.padded, tile.height, tile.a.width, left);
    }

    static void attend(const Tile& tile, Space<TileUnit>& space, int64_t start, const Segment<uint16_t>& segment,
                       const Segment<uint16_t>& next) {
        attend_segment(tile, space, start, segment, next);
    }

    static void multiply(
        const uint16_t* left, int64_t row, int64_t rows, const uint16_t* panel, float* out, int64_t k) {
        const int64_t steps = ceil_div(k, STEP);
        const uint16_t* x = left + row / BLOCK * steps * BLOCK_STEP;
        const auto kernel = rows - row <= 16 ? penstock::multiply<true, 0> : penstock::multiply<false, 0>;
        kernel(x, panel, out, steps, true, nullptr);
    }
};

}  // namespace

void attention_amx(Context& context, const Attention* sets, int64_t count) {
    attend_all<TileUnit, uint16_t>(context, sets, count);
}

}  // namespace penstock
