// What happens to single rows: norms, activations, rotation. Included once for each instruction set.
//
// A row's sums run over vectors from its beginning, so they depend on its width alone. Formulas as in reference.py.
#pragma once

#include <cmath>

#include "activations.h"
#include "ops.h"
#include "vectors.h"

namespace penstock {
namespace {

// One over the root of the mean square of x.
template <class T>
float inverse_root(const T* x, int64_t width, float eps) {
    Vec squares{};
    for (int64_t i = 0; i < width; i += LANES) {
        const Vec v = load_some(x + i, width - i);
        squares = fma(v, v, squares);
    }
    return 1.0F / std::sqrt(total(squares) / static_cast<float>(width) + eps);
}

// A part of a row, normed. `plus_one`: the scale is 1 + `scale`, and nothing is rounded before it is multiplied by that.
template <class T>
PENSTOCK_INLINE Vec scaled(Vec x, float inverse, Vec scale, bool plus_one) {
    const Vec normed = x * inverse;
    return plus_one ? normed * (scale + 1.0F) : rounded<T>(normed) * scale;
}

template <class T>
void rms_norm(const T* x, const T* scale, T* out, int64_t width, float eps, bool plus_one) {
    const float inverse = inverse_root(x, width, eps);
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        store_some(out + i, scaled<T>(load_some(x + i, left), inverse, load_some(scale + i, left), plus_one), left);
    }
}

template <class T>
void layer_norm(const T* x, const T* scale, const T* shift, T* out, int64_t width, float eps) {
    Vec sum{};
    for (int64_t i = 0; i < width; i += LANES) sum += load_some(x + i, width - i);
    const float mean = total(sum) / static_cast<float>(width);
    Vec squares{};
    for (int64_t i = 0; i < width; i += LANES) {
        // Behind the end of the row there is no distance from the mean.
        const Vec centred = load_some(x + i, width - i) - splat_some(mean, width - i);
        squares = fma(centred, centred, squares);
    }
    const float inverse = 1.0F / std::sqrt(total(squares) / static_cast<float>(width) + eps);
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const Vec normed = (load_some(x + i, left) - mean) * inverse;
        store_some(out + i, normed * load_some(scale + i, left) + load_some(shift + i, left), left);
    }
}

template <class T>
void gelu_tanh(const T* x, T* out, int64_t width) {
    each_together(ceil_div(width, LANES), [&](auto number, int64_t first) {
        constexpr int N = number;
        Vec made[N];
        each<N>([&](int j) { made[j] = load_some(x + (first + j) * LANES, width - (first + j) * LANES); });
        GeluTanh::run<N>(made);
        each<N>([&](int j) { store_some(out + (first + j) * LANES, made[j], width - (first + j) * LANES); });
    });
}

// Pairs (i, i + width / 2) of x, turned in place; normed before, where there is a scale.
template <class T>
void rotate(T* x, const T* scale, float inverse, bool plus_one, const float* cosine, const float* sine, int64_t width) {
    const int64_t half = width / 2;
    const auto part = [&](int64_t i, int64_t left) {
        const Vec v = load_some(x + i, left);
        return scale ? rounded<T>(scaled<T>(v, inverse, load_some(scale + i, left), plus_one)) : v;
    };
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t left = half - i;
        const Vec first = part(i, left), second = part(half + i, left);
        const Vec c = load_some(cosine + i, left), s = load_some(sine + i, left);
        store_some(x + i, first * c - second * s, left);
        store_some(x + half + i, second * c + first * s, left);
    }
}

// Row `row` of x as it is multiplied: x itself, or what was made of it in `buffer` [k].
template <class T>
const T* prepare_row(const Product& p, int64_t row, T* buffer) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    const T *scale = static_cast<const T*>(p.scale), *shift = static_cast<const T*>(p.shift);
    if (p.prepare == AS_IS) return x;
    if (p.prepare == RMS_NORM) rms_norm(x, scale, buffer, p.k, p.eps, p.plus_one);
    if (p.prepare == LAYER_NORM) layer_norm(x, scale, shift, buffer, p.k, p.eps);
    if (p.prepare == GELU_TANH) gelu_tanh(x, buffer, p.k);
    return buffer;
}

// Calls lay(row, x) for the rows of every task, first(task) .. first(task + 1), each prepared; x is null for those that
// are not there.
template <class T, class First, class Lay>
void lay_rows(Context& context, const Product& p, int64_t tasks, First&& first, Lay&& lay) {
    context.reserve_own(p.k * static_cast<int64_t>(sizeof(T)));
    context.pool.run(tasks, [&](Tasks& all, int thread) {
        T* buffer = context.own_array<T>(thread);
        for (int64_t task; (task = all.take()) >= 0;)
            for (int64_t row = first(task); row < first(task + 1); ++row)
                lay(row, row < p.rows ? prepare_row(p, row, buffer) : nullptr);
    });
}

template <class T>
void prepare(Context& context, const Product& p) {
    const auto first = [](int64_t task) { return task; };
    lay_rows<T>(context, p, p.rows, first, [&](int64_t row, const T* made) {
        T* out = static_cast<T*>(p.out) + row * p.out_stride;
        const T* residual = static_cast<const T*>(p.residual);
        if (!residual) {
            std::memcpy(out, made, static_cast<size_t>(p.k) * sizeof(T));
            return;
        }
        for (int64_t i = 0; i < p.k; i += LANES) {
            const Vec before = load_some(residual + row * p.out_stride + i, p.k - i);
            store_some(out + i, before + load_some(made + i, p.k - i), p.k - i);
        }
    });
}

inline void cap_all(Context& context, float* x, int64_t count, float limit) {
    constexpr int64_t AT_ONCE = 1 << 12;
    context.pool.each(ceil_div(count, AT_ONCE), [&](int64_t task) {
        for (int64_t i = task * AT_ONCE; i < at_most(count, (task + 1) * AT_ONCE); i += LANES)
            store_some(x + i, capped(load_some(x + i, count - i), limit), count - i);
    });
}

constexpr int64_t HEADS_AT_ONCE = 16;

// Queries and keys `first` .. `end` of a row, normed and rotated. All roots come first: one waits for itself, many do not.
template <class T>
void turn_heads(const Heads& h, T* heads, int64_t row, int64_t first, int64_t end) {
    float inverse[HEADS_AT_ONCE] = {};
    const auto scale_of = [&](int64_t i) { return static_cast<const T*>(i < h.heads ? h.q_scale : h.k_scale); };
    for (int64_t i = first; h.cosine && i < end; ++i)
        if (scale_of(i)) inverse[i - first] = inverse_root(heads + i * h.width, h.width, h.eps);
    for (int64_t i = first; i < end; ++i) {
        T* x = heads + i * h.width;
        if (h.cosine)
            rotate(x, scale_of(i), inverse[i - first], h.plus_one, h.cosine + row * (h.width / 2),
                   h.sine + row * (h.width / 2), h.width);
        else if (scale_of(i))
            rms_norm(x, scale_of(i), x, h.width, h.eps, h.plus_one);
    }
}

template <class T>
void place_row(const Heads& h, int64_t row) {
    T* heads = static_cast<T*>(h.fused) + row * (h.heads + 2 * h.kv_heads) * h.width;
    for (int64_t first = 0; first < h.heads + h.kv_heads; first += HEADS_AT_ONCE)
        turn_heads(h, heads, row, first, at_most(first + HEADS_AT_ONCE, h.heads + h.kv_heads));
    const T *keys = heads + h.heads * h.width, *values = keys + h.kv_heads * h.width;
    for (int64_t i = 0; i < h.kv_heads; ++i) {
        const int64_t to = ((h.blocks[row] * h.kv_heads + i) * h.block_tokens + h.offsets[row]) * h.width;
        std::memcpy(static_cast<T*>(h.keys) + to, keys + i * h.width, static_cast<size_t>(h.width) * sizeof(T));
        std::memcpy(static_cast<T*>(h.values) + to, values + i * h.width, static_cast<size_t>(h.width) * sizeof(T));
    }
}

template <class T>
void place_heads(Context& context, const Heads& h) {
    context.pool.each(h.rows, [&](int64_t row) { place_row<T>(h, row); });
}

}  // namespace
}  // namespace penstock
