// bfloat16 products with VDPBF16PS: two products and their sum at a time, in the order the instruction gives them.
#include <immintrin.h>

#include "blocks.h"

namespace penstock {
namespace {

struct PairUnit {
    using T = uint16_t;
    using Left = uint32_t;  // two neighbours along K

    static constexpr int64_t LEFT_BYTES = 2 * PANEL * sizeof(T);

    static int64_t depth(int64_t k) { return ceil_div(k, 2); }
    static int64_t weight_at(int64_t i) { return i / 16 * 2 * TILE; }
    static void lay_out(const uint16_t* x, int64_t k, uint32_t* place, int64_t height) {
        for (int64_t i = 0; i < k / 2; ++i) std::memcpy(place + i * height, x + 2 * i, sizeof(uint32_t));
        if (k % 2) place[k / 2 * height] = x[k - 1];
    }

    static const uint16_t* open(const uint16_t* w, int64_t, float*) { return w; }

    template <int ROWS>
    static void multiply(const uint32_t* x, const uint16_t* w, float* sums, int64_t count, bool first, Fetch fetch) {
        Strip<ROWS> strip;
        strip.begin(sums, first);
        for (int64_t i = 0; i < count; ++i) {
            const uint16_t* pairs = w + i / 16 * 2 * TILE + i % 16 * 32;
            fetch.at(i);
            const auto a = (__m512bh)_mm512_loadu_si512(pairs), b = (__m512bh)_mm512_loadu_si512(pairs + TILE);
            for (int r = 0; r < ROWS; ++r) {
                const auto each = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[i * ROWS + r]));
                strip.left[r] = _mm512_dpbf16_ps(strip.left[r], each, a);
                strip.right[r] = _mm512_dpbf16_ps(strip.right[r], each, b);
            }
        }
        strip.save(sums);
    }
};

}  // namespace

Kernels avx512_bf16_kernels() {
    Kernels kernels = avx512_kernels();
    kernels.linear[BFLOAT16] = linear<PairUnit>;
    kernels.register_loop[BFLOAT16] = register_loop<PairUnit>;
    return kernels;
}

}  // namespace penstock
