// Decoder layers: the order of their kernels, and the memory between them.
#include "layer.h"

#include <chrono>

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

// What the step brings, put where it belongs.
void bring(Layer& layer, const Step& step) {
    for (Product* product : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) product->rows = step.rows;
    layer.qkv.x = layer.gate_up.x = step.x;
    layer.out.residual = layer.down.residual = layer.out.out = layer.down.out = step.x;
    layer.heads.rows = step.rows;
    layer.heads.cosine = step.cosine;
    layer.heads.sine = step.sine;
    layer.heads.blocks = step.blocks;
    layer.heads.offsets = step.offsets;
}

// Where the library's own memory goes between the kernels.
void connect(Context& context, Layer& layer, const Step& step) {
    const auto bytes = static_cast<size_t>(step.rows) * (layer.qkv.type == FLOAT32 ? 4 : 2);
    layer.qkv.out = layer.heads.fused = context.fused.reserve(bytes * static_cast<size_t>(layer.qkv.n));
    void* mixed = context.mixed.reserve(bytes * static_cast<size_t>(layer.out.k));
    layer.out.x = mixed;
    layer.down.x = layer.gate_up.out = context.hidden.reserve(bytes * static_cast<size_t>(layer.gate_up.n));
    for (Attention* set = step.sets; set < step.sets + step.num_sets; ++set) {
        set->query = layer.heads.fused;  // queries come first in each row
        set->out = mixed;
        set->keys = layer.heads.keys;
        set->values = layer.heads.values;
        set->sinks = layer.sinks;
        set->window = layer.window;
        set->cap = layer.cap;
    }
}

void run_layer(Context& context, const Layer& layer, const Step& step) {
    const Type type = layer.qkv.type;
    const auto linear = context.kernels.linear[type];
    timed(context, LINEAR, [&] { linear(context, layer.qkv); });
    timed(context, OTHER, [&] { context.kernels.heads[type](context, layer.heads); });
    timed(context, ATTENTION, [&] { attend(context, step.sets, step.num_sets); });
    timed(context, LINEAR, [&] {
        linear(context, layer.out);
        linear(context, layer.gate_up);
        linear(context, layer.down);
    });
}

}  // namespace

void run_layers(Context& context, const Layer* layers, int64_t count, const Step& step) {
    for (int64_t i = 0; i < count; ++i) {
        Layer layer = layers[i];
        bring(layer, step);
        connect(context, layer, step);
        run_layer(context, layer, step);
    }
}

}  // namespace penstock
