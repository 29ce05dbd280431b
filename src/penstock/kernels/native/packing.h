// How weights lie in memory: in panels of 32 columns (rows of the [n, k] matrix), each panel contiguous along K.
//
//   float32   [panel][k][32]                             one line pair for each k
//   bfloat16  [panel][k / 32][half][16 pairs][16][2]     1 KiB tiles as AMX wants them: two neighbours along K side by
//                                                        side; a row of a tile is one operand of VDPBF16PS
//
// The layouts are the same for every instruction set. Columns beyond n, and for bfloat16 positions beyond k, are zero.
#pragma once

#include <cstdint>

#include "ops.h"

namespace penstock {

constexpr int64_t TILE = 512;  // bfloat16 numbers in a tile

// The elements that a panel takes.
int64_t panel_size(int64_t k, Type type);

// The elements that a packed weight [n, k] takes. `gated`: its rows are those of a gate and then as many others; a panel
// holds 16 of the gate as columns and then the 16 that belong to them.
int64_t packed_size(int64_t n, int64_t k, Type type, bool gated);

// Packs w [n, k], contiguous.
void pack(Pool& pool, const void* w, void* packed, int64_t n, int64_t k, Type type, bool gated);

// The inverse for some rows of [n, k]: the embedding of a model whose head shares it.
void gather_rows(Pool& pool, const void* packed, const int64_t* rows, int64_t count, void* out, int64_t k, Type type);

}  // namespace penstock
