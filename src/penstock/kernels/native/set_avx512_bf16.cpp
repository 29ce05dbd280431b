// bfloat16 products with VDPBF16PS: two products and their sum at a time, in the order the instruction gives them.
//
// Otherwise as gemm_vector.h: one chain over K for each number of the result, whatever the number of rows.
#include <immintrin.h>

#include "chunks.h"
#include "finish.h"
#include "packing.h"
#include "rows.h"

namespace penstock {
namespace {

constexpr int MAX_ROWS = 12;  // 24 sums, two weights and an x fill the 32 registers

PENSTOCK_INLINE int64_t block_rows(int64_t left) { return left >= 4 ? MAX_ROWS : left >= 2 ? 3 : 1; }

PENSTOCK_INLINE int64_t padded_rows(int64_t rows) {
    const int64_t whole = rows / MAX_ROWS * MAX_ROWS;
    return rows == whole ? whole : whole + block_rows(rows - whole);
}

// Lays a row of x out in its block [k / 2][block rows][2], zeros where there is no row, and behind an odd k.
void lay_out(const uint16_t* x, int64_t row, int64_t rows, int64_t k, uint32_t* to) {
    const int64_t first = row / MAX_ROWS * MAX_ROWS, height = block_rows(rows - first), pairs = ceil_div(k, 2);
    uint32_t* place = to + first * pairs + row - first;
    for (int64_t i = 0; i < pairs; ++i) {
        const uint32_t second = x && 2 * i + 1 < k ? x[2 * i + 1] : 0;
        place[i * height] = x ? second << 16 | x[2 * i] : 0;
    }
}

template <int ROWS>
void multiply(const uint32_t* x, const uint16_t* w, float* sums, int64_t k) {
    __m512 left[ROWS], right[ROWS];
    for (int r = 0; r < ROWS; ++r) left[r] = right[r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < ceil_div(k, 2); ++i) {
        const uint16_t* pairs = w + i / 16 * 2 * TILE + i % 16 * 32;
        const auto a = (__m512bh)_mm512_loadu_si512(pairs), b = (__m512bh)_mm512_loadu_si512(pairs + TILE);
        for (int r = 0; r < ROWS; ++r) {
            const auto each = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[i * ROWS + r]));
            left[r] = _mm512_dpbf16_ps(left[r], each, a);
            right[r] = _mm512_dpbf16_ps(right[r], each, b);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        _mm512_storeu_ps(sums + r * PANEL, left[r]);
        _mm512_storeu_ps(sums + r * PANEL + 16, right[r]);
    }
}

void multiply_block(const Product& p, const uint32_t* x, const uint16_t* w, int64_t panel, int64_t row) {
    alignas(64) float sums[MAX_ROWS * PANEL];
    const int64_t left = p.rows - row, height = block_rows(left);
    if (height == MAX_ROWS) multiply<MAX_ROWS>(x, w, sums, p.k);
    if (height == 3) multiply<3>(x, w, sums, p.k);
    if (height == 1) multiply<1>(x, w, sums, p.k);
    finish<uint16_t>(p, sums, panel, row, at_most(left, height));
}

void linear_bfloat16(Context& context, const Product& p) {
    const int64_t panels = ceil_div(p.n, PANEL), blocks = ceil_div(p.rows, MAX_ROWS);
    const int64_t panel_size = packed_size(1, p.k, BFLOAT16), block_size = ceil_div(p.k, 2) * MAX_ROWS;
    auto* rows = context.rows.reserve_array<uint32_t>(static_cast<size_t>(blocks * block_size));
    lay_rows<uint16_t>(context, p, padded_rows(p.rows), [&](int64_t row, const uint16_t* x) {
        lay_out(x, row, p.rows, p.k, rows);
    });
    const Chunks chunks(blocks, block_size * 4);
    context.pool.each(chunks.count * panels, [&](int64_t task) {
        const int64_t chunk = task / panels, panel = task % panels;
        const uint16_t* w = static_cast<const uint16_t*>(p.weight) + panel * panel_size;
        for (int64_t b = chunks.first(chunk); b < chunks.first(chunk + 1); ++b)
            multiply_block(p, rows + b * block_size, w, panel, b * MAX_ROWS);
    });
}

}  // namespace

Kernels avx512_bf16_kernels() {
    Kernels kernels = avx512_kernels();
    kernels.linear[BFLOAT16] = linear_bfloat16;
    return kernels;
}

}  // namespace penstock
