// Vectors of float32 as wide as the file that includes this is compiled for, and bfloat16 in and out of them.
//
// Everything is in an anonymous namespace: the same names are compiled for several instruction sets, and the linker
// must never give one set's code to another. Products and sums round apart unless they say `fma`.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PENSTOCK_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t BitVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2)));

// x in every lane: one instruction, a load of its own (`Vec{} + x` would add first, on the ports that multiply).
PENSTOCK_INLINE Vec splat(float x) {
#if defined(__AVX512F__)
    return _mm512_set1_ps(x);
#elif defined(__AVX2__)
    return _mm256_set1_ps(x);
#else
    return Vec{x, x, x, x};
#endif
}

PENSTOCK_INLINE Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

PENSTOCK_INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// a * b + c, rounded once where the instruction set can.
PENSTOCK_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// bfloat16 is the upper half of float32.
PENSTOCK_INLINE Vec widened(HalfVec half) {
#if defined(__AVX512F__)  // GCC 12 converts in two halves by itself
    const BitVec wide = (BitVec)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)half);
#elif defined(__AVX2__)
    const BitVec wide = (BitVec)_mm256_cvtepu16_epi32((__m128i)half);
#else
    const BitVec wide = __builtin_convertvector(half, BitVec);
#endif
    return (Vec)(wide << 16);
}

PENSTOCK_INLINE Vec load(const uint16_t* from) {
    HalfVec half;
    std::memcpy(&half, from, sizeof half);
    return widened(half);
}

// The two neighbours along K of each column, from packed pairs.
struct Pair {
    Vec first, second;
};

PENSTOCK_INLINE Pair load_pairs(const uint16_t* from) {
    BitVec pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    return {(Vec)(pairs << 16), (Vec)(pairs & 0xffff0000U)};
}

// To bfloat16, the nearest, ties to even; a NaN stays one (its upper half could otherwise become infinity). What has
// an instruction for it takes what is smaller than any normal float32 for 0, as its products do.
PENSTOCK_INLINE HalfVec narrowed(Vec v) {
#if defined(__AVX512BF16__)
    return (HalfVec)_mm512_cvtneps_pbh((__m512)v);
#else
    const BitVec bits = (BitVec)v;
    const BitVec rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
    const BitVec chosen = (v == v ? rounded : (bits | 0x400000U)) >> 16;
#if defined(__AVX512F__)
    return (HalfVec)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)chosen);
#else
    return __builtin_convertvector(chosen, HalfVec);
#endif
#endif
}

PENSTOCK_INLINE void store(uint16_t* to, Vec v) {
    const HalfVec half = narrowed(v);
    std::memcpy(to, &half, sizeof half);
}

// The first `count` numbers, zeros behind them; no more is read.
template <class T>
PENSTOCK_INLINE Vec load_some(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T line[LANES] = {};
    if (count > 0) std::memcpy(line, from, static_cast<size_t>(count) * sizeof(T));
    return load(line);
}

PENSTOCK_INLINE IntVec lane_numbers() {
    IntVec numbers{};
    for (int i = 0; i < LANES; ++i) numbers[i] = i;
    return numbers;
}

// Of each lane's number, that lane of a, or, from LANES on, of b.
PENSTOCK_INLINE Vec pick(Vec a, Vec b, IntVec from) {
#if defined(__clang__)
    Vec picked{};
    for (int i = 0; i < LANES; ++i) picked[i] = from[i] < LANES ? a[from[i]] : b[from[i] - LANES];
    return picked;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Turns a square of LANES vectors: lane j of vector i becomes lane i of vector j. Stage by stage, halves of size S
// change places between vectors that are S apart.
template <int S>
PENSTOCK_INLINE void turn_stage(Vec* v) {
    IntVec low{}, high{};
    for (int i = 0; i < LANES; ++i) {
        low[i] = i & S ? LANES + i - S : i;
        high[i] = i & S ? LANES + i : i + S;
    }
#pragma GCC unroll 16  // so that the vectors stay in registers
    for (int i = 0; i < LANES; ++i) {
        if (i & S) continue;
        const Vec a = v[i], b = v[i + S];
        v[i] = pick(a, b, low);
        v[i + S] = pick(a, b, high);
    }
}

PENSTOCK_INLINE void turn(Vec* v) {
    turn_stage<1>(v);
    turn_stage<2>(v);
    if constexpr (LANES >= 8) turn_stage<LANES >= 8 ? 4 : 1>(v);
    if constexpr (LANES >= 16) turn_stage<LANES >= 16 ? 8 : 1>(v);
}

// x in the first `count` lanes, zeros behind them.
PENSTOCK_INLINE Vec splat_some(float x, int64_t count) {
    return lane_numbers() < static_cast<int32_t>(count) ? splat(x) : Vec{};
}

template <class T>
PENSTOCK_INLINE void store_some(T* to, Vec v, int64_t count) {
    if (count >= LANES) return store(to, v);
    T line[LANES];
    store(line, v);
    std::memcpy(to, line, static_cast<size_t>(count) * sizeof(T));
}

// A vector as T would hold it.
template <class T>
PENSTOCK_INLINE Vec rounded(Vec v) {
    if constexpr (sizeof(T) == sizeof(float)) return v;
    return widened(narrowed(v));
}

// The lanes of the upper half of the first `2 * half`, in the place of the lower.
PENSTOCK_INLINE Vec upper(Vec v, int half) {
    const IntVec from = lane_numbers() + half;
    return pick(v, v, from & (LANES - 1));
}

// The higher and the lower of two in each lane; where one is not a number, b: one instruction.
PENSTOCK_INLINE Vec higher(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_maskz_max_ps(0xffff, a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

PENSTOCK_INLINE Vec lower(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_maskz_min_ps(0xffff, a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

// Both by halves, so that the order depends on the width of a vector alone.
PENSTOCK_INLINE float total(Vec v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v += upper(v, half);
    return v[0];
}

PENSTOCK_INLINE float highest(Vec v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        v = higher(v, upper(v, half));
    }
    return v[0];
}

// How many vectors go through the longer formulas side by side: in one alone, each operation waits for the one before.
constexpr int TOGETHER = LANES == 16 ? 4 : 2;

// Calls body(j) for numbers below N, each a constant.
template <int N, class Body>
PENSTOCK_INLINE void each(Body&& body) {
#pragma GCC unroll 16  // so that the vectors stay in registers
    for (int j = 0; j < N; ++j) body(j);
}

// x becomes e to the x as in exact.py: the same operations in the same order, so the same bits on every instruction set.
template <int N>
PENSTOCK_INLINE void exp(Vec* x) {
    constexpr float NEAREST = 12582912.0F;  // 1.5 * 2^23: adding it leaves no bits behind the point
    Vec n[N], r[N], power[N];
    each<N>([&](int j) { x[j] = lower(splat(88.0F), higher(splat(-87.0F), x[j])); });
    each<N>([&](int j) { n[j] = (x[j] * 1.4426950408889634F + NEAREST) - NEAREST; });
    each<N>([&](int j) { r[j] = (x[j] - n[j] * 0.693145751953125F) - n[j] * 1.42860682030941723212e-6F; });
    each<N>([&](int j) { power[j] = splat(1.0F / 5040); });
#pragma GCC unroll 7
    for (const float c : {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F})
        each<N>([&](int j) { power[j] = power[j] * r[j] + c; });
    each<N>([&](int j) { x[j] = power[j] * (Vec)((__builtin_convertvector(n[j], IntVec) + 127) << 23); });
}

PENSTOCK_INLINE Vec exp(Vec x) {
    exp<1>(&x);
    return x;
}

template <int N>
PENSTOCK_INLINE void sigmoid(Vec* x) {
    each<N>([&](int j) { x[j] = -x[j]; });
    exp<N>(x);
    each<N>([&](int j) { x[j] = 1.0F / (x[j] + 1.0F); });
}

PENSTOCK_INLINE Vec sigmoid(Vec x) {
    sigmoid<1>(&x);
    return x;
}

// As in exact.py.
PENSTOCK_INLINE Vec tanh(Vec x) { return sigmoid(x * 2.0F) * 2.0F - 1.0F; }

PENSTOCK_INLINE Vec capped(Vec x, float limit) { return tanh(x / limit) * limit; }

}  // namespace
