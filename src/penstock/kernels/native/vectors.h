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

PENSTOCK_INLINE Vec splat(float x) { return Vec{} + x; }

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
PENSTOCK_INLINE Vec load(const uint16_t* from) {
    HalfVec half;
    std::memcpy(&half, from, sizeof half);
    return (Vec)(__builtin_convertvector(half, BitVec) << 16);
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

// To the nearest, ties to even; a NaN stays one (its upper half could otherwise become infinity).
PENSTOCK_INLINE void store(uint16_t* to, Vec v) {
    const BitVec bits = (BitVec)v;
    const BitVec rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
    const BitVec chosen = v == v ? rounded : (bits | 0x400000U);
    const HalfVec half = __builtin_convertvector(chosen >> 16, HalfVec);
    std::memcpy(to, &half, sizeof half);
}

PENSTOCK_INLINE float widen(float x) { return x; }

PENSTOCK_INLINE float widen(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

}  // namespace
