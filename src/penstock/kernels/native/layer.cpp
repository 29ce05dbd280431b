// A decoder layer: the order of its kernels, and the memory between them.
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

void run_layer(Context& context, Layer& layer) {
    const Type type = layer.qkv.type;
    const auto linear = context.kernels.linear[type];
    const auto bytes = static_cast<size_t>(layer.qkv.rows) * (type == FLOAT32 ? 4 : 2);
    layer.qkv.out = layer.heads.fused = context.fused.reserve(bytes * static_cast<size_t>(layer.qkv.n));
    layer.out.x = context.mixed.reserve(bytes * static_cast<size_t>(layer.out.k));
    layer.down.x = layer.gate_up.out = context.hidden.reserve(bytes * static_cast<size_t>(layer.gate_up.n));
    for (int64_t i = 0; i < layer.num_sets; ++i) {
        layer.sets[i].query = layer.heads.fused;  // queries come first in each row
        layer.sets[i].out = const_cast<void*>(layer.out.x);
    }
    timed(context, LINEAR, [&] { linear(context, layer.qkv); });
    timed(context, OTHER, [&] { context.kernels.heads[type](context, layer.heads); });
    timed(context, ATTENTION, [&] { attend(context, layer.sets, layer.num_sets); });
    timed(context, LINEAR, [&] {
        linear(context, layer.out);
        linear(context, layer.gate_up);
        linear(context, layer.down);
    });
}

}  // namespace penstock
