// A loop to be timed: products whose operands stay in registers and the first-level cache, on every thread. What it
// reaches is the most that any product can. Included once for each instruction set.
#pragma once

#include <cstring>

#include "chunks.h"

namespace penstock {
namespace {

constexpr int64_t PRODUCTS_A_ROUND = 64;

// Calls product(memory), so often a round, with `bytes` of zeros of a thread's own, between begin() and end() of a
// thread's work; gives the operations of all calls.
template <class Around = Nothing, int64_t CALLS = PRODUCTS_A_ROUND, class Product>
double time_rounds(Context& context, int64_t rounds, int64_t bytes, double operations, Product&& product) {
    context.reserve_own(bytes);
    context.pool.run(rounds, [&](Tasks& tasks, int thread) {
        char* memory = context.own_array<char>(thread);
        std::memset(memory, 0, static_cast<size_t>(bytes));
        Around::begin();
        while (tasks.take() >= 0)
            for (int64_t i = 0; i < CALLS; ++i) product(memory);
        Around::end();
    });
    return operations * static_cast<double>(CALLS * rounds);
}

}  // namespace
}  // namespace penstock
