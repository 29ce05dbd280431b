#include "packing.h"

#include <algorithm>
#include <cstring>

namespace penstock {
namespace {

constexpr int64_t HALF = PANEL / 2;

int64_t depth(int64_t k, Type type) { return type == FLOAT32 ? k : ceil_div(k, STEP) * STEP; }

// Where element (column, k) of a panel lies.
int64_t place(int64_t column, int64_t k, Type type) {
    if (type == FLOAT32) return k * PANEL + column;
    const int64_t tile = (k / STEP) * 2 + column / 16;
    return tile * TILE + (k % STEP) / 2 * 32 + (column % 16) * 2 + k % 2;
}

// A whole tile: 16 columns, k elements apart, of STEP positions; each pair of positions moves as one.
void pack_tile(const uint16_t* w, uint16_t* tile, int64_t k) {
    uint32_t square[16][16];
    for (int column = 0; column < 16; ++column) {
        uint32_t pairs[16];
        std::memcpy(pairs, w + column * k, sizeof pairs);
        for (int i = 0; i < 16; ++i) square[i][column] = pairs[i];
    }
    std::memcpy(tile, square, sizeof square);
}

void pack_tile(const float*, float*, int64_t) {}  // float32 has no tiles

// Where the 16 columns of half a panel come from: rows of [n, k], `count` of them.
template <class T>
struct Half {
    const T* rows;
    int64_t count;
};

template <class T>
void pack_panel(const Half<T>* halves, T* panel, int64_t k, Type type) {
    std::memset(panel, 0, sizeof(T) * static_cast<size_t>(panel_size(k, type)));
    for (int64_t at = 0; at < k; at += STEP) {  // a tile at a time, so that its lines stay in the cache
        const int64_t end = at_most(at + STEP, k);
        for (int64_t first = 0; first < PANEL; first += HALF, ++halves) {
            if (type == BFLOAT16 && halves->count == HALF && end == at + STEP) {
                pack_tile(halves->rows + at, panel + place(first, at, type), k);
                continue;
            }
            for (int64_t column = 0; column < halves->count; ++column)
                for (int64_t i = at; i < end; ++i) panel[place(first + column, i, type)] = halves->rows[column * k + i];
        }
        halves -= 2;
    }
}

template <class T>
void pack_as(Pool& pool, const T* w, T* packed, int64_t n, int64_t k, Type type, bool gated) {
    const int64_t size = panel_size(k, type), columns = gated ? n / 2 : n, each = gated ? HALF : PANEL;
    pool.each(ceil_div(columns, each), [=](int64_t panel) {
        const int64_t first = panel * each, second = gated ? columns + first : first + HALF;
        const auto half = [=](int64_t row, int64_t end) {
            return Half<T>{w + row * k, at_most(std::max<int64_t>(end - row, 0), HALF)};
        };
        const Half<T> halves[] = {half(first, columns), half(second, n)};
        pack_panel(halves, packed + panel * size, k, type);
    });
}

template <class T>
void gather_as(Pool& pool, const T* packed, const int64_t* rows, int64_t count, T* out, int64_t k, Type type) {
    const int64_t size = panel_size(k, type);
    pool.each(count, [=](int64_t i) {
        const T* panel = packed + rows[i] / PANEL * size;
        for (int64_t at = 0; at < k; ++at) out[i * k + at] = panel[place(rows[i] % PANEL, at, type)];
    });
}

}  // namespace

int64_t panel_size(int64_t k, Type type) { return PANEL * depth(k, type); }

int64_t packed_size(int64_t n, int64_t k, Type type, bool gated) {
    return (gated ? ceil_div(n / 2, HALF) : ceil_div(n, PANEL)) * panel_size(k, type);
}

void pack(Pool& pool, const void* w, void* packed, int64_t n, int64_t k, Type type, bool gated) {
    const Piece all{packed, static_cast<size_t>(packed_size(n, k, type, gated)) * (type == FLOAT32 ? 4 : 2)};
    prefer_huge_pages(all.start, all.bytes);
    populate(pool, &all, 1);
    if (type == FLOAT32)
        return pack_as(pool, static_cast<const float*>(w), static_cast<float*>(packed), n, k, type, gated);
    pack_as(pool, static_cast<const uint16_t*>(w), static_cast<uint16_t*>(packed), n, k, type, gated);
}

void gather_rows(Pool& pool, const void* packed, const int64_t* rows, int64_t count, void* out, int64_t k, Type type) {
    if (type == FLOAT32)
        return gather_as(pool, static_cast<const float*>(packed), rows, count, static_cast<float*>(out), k, type);
    gather_as(pool, static_cast<const uint16_t*>(packed), rows, count, static_cast<uint16_t*>(out), k, type);
}

}  // namespace penstock
