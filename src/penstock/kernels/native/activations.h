// Activations, of N vectors side by side. Included once for each instruction set. Formulas as in reference.py.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace {

struct Silu {
    template <int N>
    static PENSTOCK_INLINE void run(Vec* x) {
        Vec by[N];
        each<N>([&](int j) { by[j] = x[j]; });
        sigmoid<N>(by);
        each<N>([&](int j) { x[j] = x[j] * by[j]; });
    }
};

struct GeluTanh {
    template <int N>
    static PENSTOCK_INLINE void run(Vec* x) {
        Vec by[N];
        each<N>([&](int j) { by[j] = (x[j] * x[j] * x[j] * 0.044715F + x[j]) * 0.7978845608028654F * 2.0F; });
        sigmoid<N>(by);
        each<N>([&](int j) { x[j] = x[j] * by[j]; });
    }
};

// Calls body(N, first) for all of some vectors: TOGETHER at once, and then single ones.
template <class Body>
PENSTOCK_INLINE void each_together(int64_t vectors, Body&& body) {
    int64_t first = 0;
    for (; first + TOGETHER <= vectors; first += TOGETHER) body(std::integral_constant<int, TOGETHER>(), first);
    for (; first < vectors; ++first) body(std::integral_constant<int, 1>(), first);
}

}  // namespace
