// What the kernels compute, as plain data: one struct an op, and the table of kernels that each instruction set fills.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "memory.h"
#include "pool.h"

namespace penstock {

constexpr int64_t PANEL = 32;  // columns of a packed weight that lie together
constexpr int64_t STEP = 32;   // positions along K of one tile product; packed bfloat16 weights are padded to it

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t at_most(int64_t a, int64_t limit) { return a < limit ? a : limit; }

// A type of number as the C interface numbers it.
enum Type : int { FLOAT32 = 0, BFLOAT16 = 1 };

struct Context;

// out [rows, n] = x [rows, k] times a packed weight, plus bias. See packing.h for the packed layouts.
struct Product {
    const void* x;        // of `type`; rows are `x_stride` elements apart
    const void* weight;   // of `type`, packed
    const float* bias;    // [panels * PANEL], or null
    void* out;            // of `out_type`; rows are `out_stride` elements apart
    int64_t rows, n, k, x_stride, out_stride;
    Type type, out_type;
};

// The kernels of one instruction set.
struct Kernels {
    void (*linear_float32)(Context&, const Product&);
    void (*linear_bfloat16)(Context&, const Product&);
};

Kernels portable_kernels();
#if defined(__x86_64__)
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512_bf16_kernels();
Kernels amx_kernels();
#endif

// Everything that a call needs and that outlives it.
struct Context {
    Isa isa;
    Kernels kernels;
    Pool pool;
    int owner;               // the process that opened it: a forked child has the memory but not the threads
    std::mutex in_use;       // one call at a time: they share the working memory
    Memory rows;             // rows of x, laid out for the kernels
    std::vector<Memory> own;  // each thread's

    Context(Isa set, const Kernels& table, int threads, int process)
        : isa(set), kernels(table), pool(threads), owner(process), own(threads) {}
};

}  // namespace penstock
