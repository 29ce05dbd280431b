// Decoder layers: the order of their kernels, and the memory between them.
#include "layer.h"

#include <chrono>
#include <cstring>

namespace penstock {
namespace {

template <class Body>
void timed(Context& context, Part part, Body&& body) {
    const auto started = std::chrono::steady_clock::now();
    body();
    context.layer_seconds[part] += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

}  // namespace

// A set that keeps states is done before the next one begins; those that keep none need not wait for each other.
void attend(Context& context, Attention* sets, int64_t count) {
    size_t floats = 0;
    for (int64_t i = 0; i < count; ++i)
        if (sets[i].kept) floats = static_cast<size_t>(sets[i].step_rows * sets[i].heads * sets[i].state_floats());
    for (int64_t i = 0; i < count; ++i) sets[i].states = floats ? context.states.reserve_array<float>(floats) : nullptr;
    for (int64_t first = 0, last; first < count; first = last) {
        last = first + 1;
        while (!sets[first].kept && last < count && !sets[last].kept) ++last;
        context.kernels.attention[sets[first].type](context, sets + first, last - first);
    }
}

namespace {

// The rows of a step that a part of a layer computes, and their tiles.
struct RowsOf {
    int64_t rows;
    Attention* sets;
    int64_t num_sets;
};

size_t bytes_of(const Layer& layer, int64_t numbers) {
    return static_cast<size_t>(numbers) * (layer.qkv.type == FLOAT32 ? 4 : 2);
}

// What the step brings, put where it belongs, and the library's own memory between the kernels.
void bring_heads(Context& context, Layer& layer, const Step& step) {
    layer.qkv.rows = layer.heads.rows = step.rows;
    layer.qkv.x = step.x;
    layer.qkv.out = layer.heads.fused = context.fused.reserve(bytes_of(layer, step.rows * layer.qkv.n));
    const bool other = layer.window && step.windows_cosine;
    layer.heads.cosine = other ? step.windows_cosine : step.cosine;
    layer.heads.sine = other ? step.windows_sine : step.sine;
    layer.heads.blocks = step.blocks;
    layer.heads.offsets = step.offsets;
}

void bring_rest(Context& context, Layer& layer, const Step& step, const RowsOf& some) {
    for (Product* product : {&layer.out, &layer.gate_up, &layer.down}) product->rows = some.rows;
    layer.gate_up.x = step.x;
    void* mixed = context.mixed.reserve(bytes_of(layer, some.rows * layer.out.k));
    layer.out.x = mixed;
    layer.down.x = layer.gate_up.out = context.hidden.reserve(bytes_of(layer, some.rows * layer.gate_up.n));
    for (Attention* set = some.sets; set < some.sets + some.num_sets; ++set) {
        set->query = layer.heads.fused;  // queries come first in each row
        set->out = mixed;
        set->keys = layer.heads.keys;
        set->values = layer.heads.values;
        set->sinks = layer.sinks;
        set->window = layer.window;
        set->scale = layer.scale;
        set->cap = layer.cap;
    }
}

// Wanted rows to the front; they ascend, so none is written over before it has moved.
void move_to_front(const Step& step, void* matrix, size_t stride, size_t bytes) {
    char* rows = static_cast<char*>(matrix);
    for (int64_t i = 0; i < step.num_wanted; ++i) {
        const auto from = static_cast<size_t>(step.wanted[i]), to = static_cast<size_t>(i);
        if (from != to) std::memcpy(rows + to * stride, rows + from * stride, bytes);
    }
}

// A product whose result is added to x, or normed first and then added.
void add(Context& context, Product product, Product after, const Step& step) {
    const Type type = product.type;
    if (!after.scale) {
        product.residual = product.out = step.x;
        return context.kernels.linear[type](context, product);
    }
    const auto numbers = static_cast<size_t>(product.rows * product.n);
    product.out = context.given.reserve(numbers * (type == FLOAT32 ? 4 : 2));
    context.kernels.linear[type](context, product);
    after.rows = product.rows;
    after.x = product.out;
    after.residual = after.out = step.x;
    context.kernels.prepare[type](context, after);
}

// Keys and values of all rows, and of those that are wanted what they become.
void run_layer(Context& context, Layer layer, const Step& step, bool all) {
    const Type type = layer.qkv.type;
    const auto linear = context.kernels.linear[type];
    bring_heads(context, layer, step);
    timed(context, LINEAR, [&] { linear(context, layer.qkv); });
    timed(context, OTHER, [&] { context.kernels.heads[type](context, layer.heads); });
    RowsOf some{step.rows, step.sets, step.num_sets};
    if (!all) {
        some = {step.num_wanted, step.wanted_sets, step.num_wanted_sets};
        const size_t hidden = bytes_of(layer, layer.qkv.k), fused = bytes_of(layer, layer.qkv.n);
        move_to_front(step, step.x, hidden, hidden);
        move_to_front(step, layer.heads.fused, fused, bytes_of(layer, layer.heads.heads * layer.heads.width));
    }
    if (some.rows == 0) return;
    bring_rest(context, layer, step, some);
    timed(context, ATTENTION, [&] { attend(context, some.sets, some.num_sets); });
    timed(context, LINEAR, [&] {
        add(context, layer.out, layer.after_attention, step);
        linear(context, layer.gate_up);
        add(context, layer.down, layer.after_mlp, step);
    });
}

}  // namespace

void run_layers(Context& context, const Layer* layers, int64_t count, const Step& step) {
    for (int64_t i = 0; i < count; ++i) {
        const bool all = step.num_wanted == step.rows || i + 1 < count;
        run_layer(context, layers[i], step, all);
    }
}

}  // namespace penstock
