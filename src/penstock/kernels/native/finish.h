// The end of every product, whatever computed it: float32 sums to the output, with the bias, rounded once.
#pragma once

#include "ops.h"
#include "vectors.h"

namespace {

using penstock::PANEL;
using penstock::Product;

template <class Out>
PENSTOCK_INLINE void finish_row(const float* sums, const float* bias, Out* out, int64_t columns) {
    alignas(64) Out line[PANEL];
    Out* to = columns == PANEL ? out : line;
    for (int64_t c = 0; c < PANEL; c += LANES) store(to + c, bias ? load(sums + c) + load(bias + c) : load(sums + c));
    if (to == line) std::memcpy(out, line, static_cast<size_t>(columns) * sizeof(Out));
}

template <class Out>
void finish_rows(const Product& p, const float* sums, int64_t panel, int64_t row, int64_t count) {
    const float* bias = p.bias ? p.bias + panel * PANEL : nullptr;
    const int64_t columns = penstock::at_most(p.n - panel * PANEL, PANEL);
    Out* out = static_cast<Out*>(p.out) + row * p.out_stride + panel * PANEL;
    for (int64_t r = 0; r < count; ++r) finish_row(sums + r * PANEL, bias, out + r * p.out_stride, columns);
}

// Writes sums [count][PANEL] of one panel to rows `row` .. `row + count` of the output.
void finish(const Product& p, const float* sums, int64_t panel, int64_t row, int64_t count) {
    if (p.out_type == penstock::FLOAT32) return finish_rows<float>(p, sums, panel, row, count);
    finish_rows<uint16_t>(p, sums, panel, row, count);
}

}  // namespace
