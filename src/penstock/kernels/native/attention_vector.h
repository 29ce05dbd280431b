// Attention with vector instructions: keys, values and weights are float32, whatever the cache holds.
#pragma once

#include "attention_all.h"
#include "attention_few.h"
#include "attention_lanes.h"

namespace penstock {
namespace {

struct VectorUnit {
    using Number = float;
    using Side = WideSide;
    static constexpr int64_t ROWS = MAX_ROWS;
    static void begin() {}
    static void end() {}
    static int64_t size(int64_t rows, int64_t k) { return rows * k; }
    static int64_t weights_size(int64_t) { return 0; }
    static int64_t right_size(int64_t k) { return std::max<int64_t>(k * PANEL, MAX_ROWS * key_stride<Side>()); }
    static Vec weight(Vec v) { return v; }

    template <int N>
    static PENSTOCK_INLINE void keep(float* to, int64_t key, Vec* weights) {
        store_weights<N>(to, key, weights);
    }

    static void lay_out_queries(const Tile& tile, const float* panels, float* left) {
        if (in_lanes(tile)) turn_queries<WideSide>(tile, panels, left);
    }

    template <class T>
    static void attend(const Tile& tile, Space<VectorUnit>& space, int64_t start, const Segment<T>& segment,
                       Ahead<T>& ahead) {
        if (in_lanes(tile)) return attend_lanes<VectorUnit>(tile, space, start, segment, ahead);
        attend_few(tile, space, start, segment, ahead);
    }

    template <class T>
    static void pack_values(const Segment<T>& segment, Ahead<T>& ahead, int64_t panel, float* right) {
        const int64_t first = panel * PANEL;
        const bool is_whole = segment.a.width - first >= PANEL;
        for (int64_t key = 0; key < segment.count; ++key) {
            ahead.step();
            float* to = right + key * PANEL;
            if (is_whole && segment.has(key)) {
                const T* from = segment.row(segment.a.values, key) + first;
                for (int64_t i = 0; i < PANEL; i += LANES) store(to + i, load(from + i));
            } else {
                for (int64_t i = 0; i < PANEL; i += LANES)
                    store(to + i, segment.load(segment.a.values, key, first + i));
            }
        }
    }
};

template <class T>
void attention(Context& context, const Attention* sets, int64_t count) {
    attend_all<VectorUnit, T>(context, sets, count);
}

}  // namespace
}  // namespace penstock
