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

// What happens to a row of x before it is multiplied, while it is laid out for the kernel anyway.
enum Prepare : int { AS_IS = 0, RMS_NORM = 1, LAYER_NORM = 2, GELU_TANH = 3 };

// What becomes of the numbers of a gated weight, whose panels hold 16 columns of a gate and then 16 that it multiplies:
// the activation of the one times the other. Both are numbers of the output's type before.
enum Gate : int { UNGATED = 0, SWIGLU = 1, GEGLU = 2 };

// out [rows, n] = x [rows, k] times a packed weight, plus bias, plus residual; or what a gate makes of 2 n columns. See
// packing.h for the packed layouts.
struct Product {
    const void* x;         // of `type`; rows are `x_stride` elements apart
    const void* weight;    // of `type`, packed
    const float* bias;     // [panels * PANEL], as the weight's columns, or null
    const void* residual;  // of `type`, laid out as out, or null; may be out itself
    const void* scale;     // of `type`, [k]: a norm's; and its
    const void* shift;     // bias
    void* out;             // of `out_type`; rows are `out_stride` elements apart
    int64_t rows, n, k, x_stride, out_stride;
    float eps;
    Prepare prepare;
    int plus_one;          // not 0: the scale of RMS_NORM is 1 + `scale`, and its result is rounded once
    Type type, out_type;
    Gate gate;

    // The columns of the output that a panel of the weight gives, and how many panels there are.
    int64_t panel_columns() const { return gate ? PANEL / 2 : PANEL; }
    int64_t panels() const { return ceil_div(n, panel_columns()); }
};

// Query and key heads of a step's rows, normed and turned in place, then keys and values stored in the cache.
struct Heads {
    void* fused;                      // [rows, heads + 2 kv_heads, width]
    const void *q_scale, *k_scale;    // [width], or null
    const float *cosine, *sine;       // [rows, width / 2], or null
    const int64_t *blocks, *offsets;  // [rows]: where a row's keys and values go
    void *keys, *values;              // [blocks, kv_heads, block_tokens, width]
    int64_t rows, heads, kv_heads, width, block_tokens;
    float eps;
    int plus_one;  // as in Product
    Type type;
};

// Causal attention for tiles of queries that attend to the same keys. See AttentionTiles in reference.py.
struct Attention {
    const void* query;                // rows [heads, width], `query_stride` elements apart
    const void *keys, *values;        // [blocks, kv_heads, block_tokens, width]
    void* out;                        // rows [heads, width], `out_stride` elements apart
    float* states;                    // [step_rows, heads, state_floats]; null where no set keeps any
    const int64_t *rows, *positions;  // [tiles, queries]; position -1: no query, and none behind it
    const int64_t *begins, *ends;     // [tiles]: positions of the keys; what is before `begins` is in the states
    const int64_t* tables;            // [tiles, table_blocks], from `begins` on
    const float* sinks;               // [heads], or null: a score that takes part in a head's sum of weights, no more
    int64_t tiles, queries, table_blocks, query_stride, out_stride, heads, kv_heads, width, block_tokens, step_rows;
    int64_t window;    // a query sees a key that is less than this far back; 0: every key
    float scale, cap;  // scores become cap * tanh(score / cap); 0: they stay
    int kept;  // not 0: what is found goes to the states, for the sets behind this one
    Type type;

    // A row's values, and behind them its highest score and the sum of its weights, in cache lines of its own.
    int64_t state_floats() const { return ceil_div(width, PANEL) * PANEL + 16; }
};

// A decoder layer, in the order in which it runs: its parameters, its keys and values. What a step brings is left open.
struct Layer {
    Product qkv;
    Heads heads;
    Product out;
    Product after_attention;  // the norm of what `out` gives, which is added to x; without a scale: there is none
    Product gate_up, down;
    Product after_mlp;    // likewise
    const float* sinks;   // these four as in Attention
    int64_t window;
    float scale, cap;
};

// What a step brings to every layer: x [rows, hidden], which they change; the rest as in Heads and Attention.
//
// Of the last layer only some rows may be wanted: behind its keys and values it goes on with these alone, at the front
// of x. Their tiles are `wanted_sets`, whose rows are numbered as `wanted` lists them.
struct Step {
    void* x;
    const float *cosine, *sine;
    const float *windows_cosine, *windows_sine;  // for layers with a window; null: as for the others
    const int64_t *blocks, *offsets;
    Attention *sets, *wanted_sets;
    const int64_t* wanted;  // [num_wanted], ascending; not looked at where all rows are wanted
    int64_t num_sets, num_wanted_sets, rows, num_wanted;
};

// A token to be drawn from a row of logits, and what came of it.
struct Draw {
    double uniform, top_p, min_p;
    int64_t top_k, num_top;
    float temperature;  // 0: the best token
    int weighed;        // whether `total` and the best tokens are wanted
    const int64_t* changed;  // [changes]: tokens to whose logits
    const float* amounts;    // these are added, in this order; minus infinity bans one
    int64_t* top;            // [num_top], filled with the best tokens before any change, and
    float* top_logits;       // their logits
    int64_t changes;
    // What came of it:
    int64_t token, bad, total;  // bad: logits that are not finite; total: the weight of all logits before any change
    float highest, logit;       // before any change: the highest, and the token's
    int possible;               // 0: every token is banned
};

struct Draws {
    const float* logits;  // [rows, vocab]
    Draw* draws;          // [rows]
    int64_t rows, vocab;
};

// The kernels of one instruction set, each for float32 and bfloat16, numbered as Type.
struct Kernels {
    void (*linear[2])(Context&, const Product&);
    void (*prepare[2])(Context&, const Product&);  // out [rows, k]: rows of x as `linear` would multiply them, + residual
    void (*heads[2])(Context&, const Heads&);
    void (*attention[2])(Context&, const Attention* sets, int64_t count);
    void (*cap)(Context&, float* x, int64_t count, float limit);  // x becomes limit * tanh(x / limit)
    void (*draw)(Context&, const Draws&);
    double (*register_loop[2])(Context&, int64_t rounds);                // only to be timed: see register_loop.h
    double (*read_loop)(Context&, const float* memory, int64_t count);  // and read_loop.h
};

Kernels portable_kernels();
#if defined(__x86_64__)
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512_bf16_kernels();
Kernels amx_kernels();
#endif

// Where the time of a layer goes: its products (with the norms, activations and sums fused into them), attention, and
// what is done to heads between them.
enum Part : int { LINEAR = 0, ATTENTION = 1, OTHER = 2 };

// Everything that a call needs and that outlives it.
struct Context {
    Isa isa;
    Kernels kernels;
    Pool pool;
    int owner;               // the process that opened it: a forked child has the memory but not the threads
    std::mutex in_use;       // one call at a time: they share the working memory
    Memory rows;              // rows of x, laid out for the kernels
    Memory fused, mixed, hidden, given;  // what is between the products of a layer
    Memory states;                // what attention keeps of rows from one set of tiles to the next
    Memory segments;              // what it keeps of long tiles that are shared by threads
    std::vector<Memory> own;  // each thread's
    double layer_seconds[3] = {};  // of each `Part`, since the context was opened

    Context(Isa set, const Kernels& table, int threads, int process)
        : isa(set), kernels(table), pool(threads), owner(process), own(static_cast<size_t>(threads)) {}

    // Every thread's own memory at this size. Before a run: a worker has nobody to tell that there is none.
    void reserve_own(int64_t bytes) {
        for (auto& memory : own) memory.reserve(static_cast<size_t>(bytes));
    }
    template <class T>
    T* own_array(int thread) {
        return static_cast<T*>(own[static_cast<size_t>(thread)].reserve(0));
    }
};

}  // namespace penstock
