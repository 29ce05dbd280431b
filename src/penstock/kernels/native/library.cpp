// The C interface: raw addresses in, a status out. Nothing here computes.
#include <unistd.h>

#include <new>
#include <system_error>

#include "float_state.h"
#include "layer.h"
#include "ops.h"
#include "packing.h"

#define PENSTOCK_API extern "C" __attribute__((visibility("default")))

using namespace penstock;

namespace {

// Part of the interface (see native.py).
enum Status : int { DONE = 0, FORKED = 1, OUT_OF_MEMORY = 2 };

Kernels kernels_of(Isa isa) {
#if defined(__x86_64__)
    if (isa == AMX) return amx_kernels();
    if (isa == AVX512_BF16) return avx512_bf16_kernels();
    if (isa == AVX512) return avx512_kernels();
    if (isa == AVX2) return avx2_kernels();
#else
    (void)isa;
#endif
    return portable_kernels();
}

// Runs `body` alone in its context. A forked child would wait for ever for threads that it does not have.
template <class Body>
int guarded(Context* context, Body&& body) {
    if (getpid() != context->owner) return FORKED;
    std::lock_guard<std::mutex> lock(context->in_use);
    const FloatState state;
    try {
        body();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
    return DONE;
}

}  // namespace

// So that a library that was built from other sources is found out: what the interface means, counted (see native.py), and
// the structs that hold the others.
PENSTOCK_API int penstock_interface() { return 2; }

PENSTOCK_API int64_t penstock_layer_bytes() { return sizeof(Layer) + sizeof(Step) + sizeof(Attention); }

PENSTOCK_API int penstock_best_isa(int cap) { return best_isa(cap); }

// A context with `threads` threads and the kernels of `isa`, which must be one that `penstock_best_isa` allows; null
// where the system gives no more threads or memory.
PENSTOCK_API Context* penstock_open(int isa, int threads) {
    const Isa set = best_isa(isa);
    try {
        return new Context(set, kernels_of(set), threads, getpid());
    } catch (const std::bad_alloc&) {
        return nullptr;
    } catch (const std::system_error&) {
        return nullptr;
    }
}

PENSTOCK_API void penstock_close(Context* context) {
    if (getpid() == context->owner) delete context;
}

PENSTOCK_API int64_t penstock_packed_size(int64_t n, int64_t k, int type, int gated) {
    return packed_size(n, k, static_cast<Type>(type), gated != 0);
}

PENSTOCK_API int penstock_pack(
    Context* context, const void* w, void* packed, int64_t n, int64_t k, int type, int gated) {
    return guarded(context, [&] { pack(context->pool, w, packed, n, k, static_cast<Type>(type), gated != 0); });
}

PENSTOCK_API int penstock_gather(
    Context* context, const void* packed, const int64_t* rows, void* out, int64_t count, int64_t k, int type) {
    return guarded(context, [&] { gather_rows(context->pool, packed, rows, count, out, k, static_cast<Type>(type)); });
}

PENSTOCK_API int penstock_linear(Context* context, const Product* product) {
    return guarded(context, [&] { context->kernels.linear[product->type](*context, *product); });
}

PENSTOCK_API int penstock_prepare(Context* context, const Product* product) {
    return guarded(context, [&] { context->kernels.prepare[product->type](*context, *product); });
}

PENSTOCK_API int penstock_attention(Context* context, Attention* sets, int64_t count) {
    return guarded(context, [&] { attend(*context, sets, count); });
}

PENSTOCK_API int penstock_layers(Context* context, const Layer* layers, int64_t count, const Step* step) {
    return guarded(context, [&] { run_layers(*context, layers, count, *step); });
}

PENSTOCK_API int penstock_cap(Context* context, float* x, int64_t count, float limit) {
    return guarded(context, [&] { context->kernels.cap(*context, x, count, limit); });
}

PENSTOCK_API int64_t penstock_draw_bytes() { return sizeof(Draw); }

PENSTOCK_API int penstock_draw(Context* context, const Draws* draws) {
    return guarded(context, [&] { context->kernels.draw(*context, *draws); });
}

// Products with operands in registers and the first-level cache, to be timed; gives their operations.
PENSTOCK_API int penstock_register_loop(Context* context, int64_t rounds, int type, double* operations) {
    return guarded(context, [&] { *operations = context->kernels.register_loop[type](*context, rounds); });
}

// All of memory [count] read once, to be timed; gives the sum of its numbers.
PENSTOCK_API int penstock_read_loop(Context* context, const float* memory, int64_t count, double* sum) {
    return guarded(context, [&] { *sum = context->kernels.read_loop(*context, memory, count); });
}

PENSTOCK_API void penstock_prefer_huge_pages(void* start, int64_t bytes) {
    prefer_huge_pages(start, static_cast<size_t>(bytes));
}

PENSTOCK_API int penstock_populate(Context* context, const Piece* pieces, int64_t count) {
    return guarded(context, [&] { populate(context->pool, pieces, static_cast<size_t>(count)); });
}

// The seconds that layers have spent in each `Part`.
PENSTOCK_API int penstock_layer_seconds(Context* context, double* seconds) {
    return guarded(context, [&] {
        for (int part = 0; part < 3; ++part) seconds[part] = context->layer_seconds[part];
    });
}
