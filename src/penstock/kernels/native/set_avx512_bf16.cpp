// bfloat16 with VDPBF16PS and what rounds to it: products, attention made of them, and all that is done to single rows.
#include "attention_all.h"
#include "attention_few.h"
#include "attention_lanes.h"
#include "attention_pairs.h"
#include "gemm_pairs.h"

namespace penstock {
namespace {

// What products are made of: pairs of neighbours along the width, and of two keys.
struct PairSide {
    using Left = uint32_t;
    template <int DOWN, int ALONG>
    using Product = PairProduct<DOWN, ALONG>;

    static constexpr int64_t depth(int64_t k) { return PairUnit::depth(k); }

    static const uint32_t* rows(const Tile& tile, const float* panels, int64_t k, uint16_t* space) {
        auto* to = reinterpret_cast<float*>(space);
        for (int64_t panel = 0; panel * PANEL < k; ++panel)
            for (int64_t r = 0; r < tile.height; ++r) {
                const float* from = panels + (panel * tile.padded + r) * PANEL;
                store(to + (panel * tile.padded + r) * LANES, pairs_of(load(from), load(from + LANES)));
            }
        return reinterpret_cast<const uint32_t*>(space);
    }

    template <class T>
    static constexpr int PARTS = 1;
    static constexpr int64_t KEYS = 2;

    static PENSTOCK_INLINE Vec spread(uint32_t x) { return (Vec)_mm512_set1_epi32(static_cast<int>(x)); }
    static PENSTOCK_INLINE Vec add(Vec each, Vec w, Vec sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)each, (__m512bh)w);
    }

    template <class T>
    static PENSTOCK_INLINE Vec part(Vec lanes, int) {
        return lanes;
    }

    template <int VECTORS>
    static PENSTOCK_INLINE void columns(const Segment<uint16_t>& segment, int64_t key, int64_t at, Vec* found,
                                        std::integral_constant<int, VECTORS>) {
        const Interleave interleave;
        const auto pair_up = [&](int c, __m512i first, __m512i second) {
            found[c] = (Vec)_mm512_permutex2var_epi16(first, interleave.low, second);
            found[c + 1] = (Vec)_mm512_permutex2var_epi16(first, interleave.high, second);
        };
        if (segment.has(key) && segment.has(key + 1) && at + VECTORS * LANES <= segment.a.width) {
            const uint16_t* first = segment.row(segment.a.values, key) + at;
            const uint16_t* second = segment.row(segment.a.values, key + 1) + at;
            for (int c = 0; c < VECTORS; c += 2)
                pair_up(c, _mm512_loadu_si512(first + c * LANES), _mm512_loadu_si512(second + c * LANES));
            return;
        }
        for (int c = 0; c < VECTORS; c += 2)
            pair_up(c, PairPanels::values(segment, key, at + c * LANES),
                    PairPanels::values(segment, key + 1, at + c * LANES));
    }

    static void keep_key(const Segment<uint16_t>& segment, int64_t key, uint32_t* to) {
        for (int64_t i = 0; i < segment.a.width; i += STEP)
            store(reinterpret_cast<float*>(to + i / 2), PairPanels::load_pairs_some(segment, key, i));
    }

    template <class Row>
    static void turn_rows(uint32_t* to, int64_t width, Row&& row) {
        for (int64_t i = 0; i < width; i += STEP)
            turn_square(reinterpret_cast<float*>(to) + i / 2 * PANEL, depth(width - i),
                        [&](int64_t r) { return pairs_of(row(r, i), row(r, i + LANES)); });
    }
};

// Attention for a cache of bfloat16. Queries are what they are in bfloat16; weights are rounded to it.
struct QueryUnit : PairPanels {
    using Side = PairSide;
    static constexpr int64_t ROWS = MAX_ROWS;
    static void begin() {}
    static void end() {}
    static int64_t size(int64_t rows, int64_t k) {
        return rows * 2 * PairUnit::depth(k);
    }
    static int64_t weights_size(int64_t rows) { return size(rows, SEGMENT); }
    static int64_t right_size(int64_t k) {
        return std::max<int64_t>(PairPanels::right_size(k), MAX_ROWS * 2 * key_stride<Side>());
    }

    // Rounded by an instruction as `weight` would round them: none is so small that it would count as nothing there.
    template <int N>
    static PENSTOCK_INLINE void keep(float* to, int64_t key, Vec* weights) {
        if constexpr (N == 1) {
            float* line = to + key / 2 * PANEL;
            weights[0] = weight(weights[0]);
            store(line, (Vec)(key % 2 ? (BitVec)load(line) | (BitVec)weights[0] : (BitVec)weights[0] >> 16));
        } else {
            static_assert(N % 2 == 0, "whole pairs, and `key` is a multiple of N");
            each<N / 2>([&](int j) {
                const auto both = _mm512_cvtne2ps_pbh((__m512)weights[2 * j + 1], (__m512)weights[2 * j]);
                const auto pairs = (BitVec)_mm512_permutexvar_epi16(Interleave::neighbours(0, 16), (__m512i)both);
                weights[2 * j] = (Vec)(pairs << 16);
                weights[2 * j + 1] = (Vec)(pairs & 0xffff0000U);
                store(to + (key / 2 + j) * PANEL, (Vec)pairs);
            });
        }
    }

    static void lay_out_queries(const Tile& tile, const float* panels, uint16_t* left) {
        if (in_lanes(tile)) turn_queries<Side>(tile, panels, reinterpret_cast<uint32_t*>(left));
    }

    static void attend(const Tile& tile, Space<QueryUnit>& space, int64_t start, const Segment<uint16_t>& segment,
                       Ahead<uint16_t>& ahead) {
        if (in_lanes(tile)) return attend_lanes<QueryUnit>(tile, space, start, segment, ahead);
        attend_few(tile, space, start, segment, ahead);
    }
};

void attention_pairs(Context& context, const Attention* sets, int64_t count) {
    attend_all<QueryUnit, uint16_t>(context, sets, count);
}

}  // namespace

Kernels avx512_bf16_kernels() {
    Kernels kernels = avx512_kernels();
    kernels.linear[BFLOAT16] = linear<PairUnit>;
    kernels.prepare[BFLOAT16] = prepare<uint16_t>;
    kernels.heads[BFLOAT16] = place_heads<uint16_t>;
    kernels.attention[BFLOAT16] = attention_pairs;
    kernels.register_loop[BFLOAT16] = register_loop<PairUnit>;
    return kernels;
}

}  // namespace penstock
