// The end of every product, whatever computed it: float32 sums to the output, with the bias and what is added to it, rounded once.
#pragma once

#include "activations.h"
#include "ops.h"
#include "vectors.h"

namespace {

using penstock::PANEL;
using penstock::Product;

template <class T, class Out>
PENSTOCK_INLINE void finish_row(const float* sums, const float* bias, const T* residual, Out* out, int64_t columns) {
    for (int64_t c = 0; c < columns; c += LANES) {
        Vec v = load(sums + c);
        if (bias) v += load(bias + c);
        if (residual) v += load_some(residual + c, columns - c);
        store_some(out + c, v, columns - c);
    }
}

// Rows of a gated panel: vectors of a few rows side by side.
template <class Activation, class Out>
void finish_gated(const float* sums, const float* bias, Out* out, int64_t stride, int64_t count, int64_t columns) {
    constexpr int64_t HALF = PANEL / 2, VECTORS = HALF / LANES;
    each_together(count * VECTORS, [&](auto number, int64_t first) {
        constexpr int N = number;
        Vec gate[N], up[N];
        each<N>([&](int j) {
            const int64_t row = (first + j) / VECTORS, column = (first + j) % VECTORS * LANES;
            const float* from = sums + row * PANEL + column;
            gate[j] = rounded<Out>(bias ? load(from) + load(bias + column) : load(from));
            up[j] = rounded<Out>(bias ? load(from + HALF) + load(bias + HALF + column) : load(from + HALF));
        });
        Activation::template run<N>(gate);
        each<N>([&](int j) {
            const int64_t row = (first + j) / VECTORS, column = (first + j) % VECTORS * LANES;
            if (column < columns) store_some(out + row * stride + column, gate[j] * up[j], columns - column);
        });
    });
}

template <class T, class Out>
void finish_rows(const Product& p, const float* sums, int64_t panel, int64_t row, int64_t count) {
    const float* bias = p.bias ? p.bias + panel * PANEL : nullptr;
    const int64_t begin = panel * p.panel_columns(), columns = penstock::at_most(p.n - begin, p.panel_columns());
    if (p.gate) {
        const auto run = p.gate == penstock::SWIGLU ? finish_gated<Silu, Out> : finish_gated<GeluTanh, Out>;
        return run(sums, bias, static_cast<Out*>(p.out) + row * p.out_stride + begin, p.out_stride, count, columns);
    }
    for (int64_t r = 0; r < count; ++r) {
        const int64_t at = (row + r) * p.out_stride + begin;
        const T* residual = p.residual ? static_cast<const T*>(p.residual) + at : nullptr;
        finish_row(sums + r * PANEL, bias, residual, static_cast<Out*>(p.out) + at, columns);
    }
}

// Fetches the lines that `finish` will write, to own them: a store to a line that is elsewhere waits for it.
PENSTOCK_INLINE void claim(const Product& p, int64_t panel, int64_t row, int64_t count) {
    const int64_t bytes = p.out_type == penstock::FLOAT32 ? 4 : 2, columns = p.panel_columns();
    for (int64_t r = 0; r < count; ++r) {
        const char* line = static_cast<const char*>(p.out) + ((row + r) * p.out_stride + panel * columns) * bytes;
        for (int64_t at = 0; at < columns * bytes; at += 64) __builtin_prefetch(line + at, 1);
    }
}

// Writes sums [count][PANEL] of one panel to rows `row` .. `row + count` of the output. T: the numbers of x.
template <class T>
void finish(const Product& p, const float* sums, int64_t panel, int64_t row, int64_t count) {
    if (p.out_type == penstock::FLOAT32) return finish_rows<T, float>(p, sums, panel, row, count);
    finish_rows<T, uint16_t>(p, sums, panel, row, count);
}

}  // namespace
