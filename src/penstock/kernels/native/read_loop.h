// Reading to be timed: all of a stretch of memory, once, by every thread, fetched ahead. What it reaches is what a step
// can read at most. Included once for each instruction set.
#pragma once

#include "chunks.h"
#include "vectors.h"

namespace penstock {
namespace {

constexpr int64_t FLOATS_A_TASK = 1 << 18, FLOATS_AHEAD = 1 << 10;
constexpr int SUMS = 4;  // additions wait for each other, reads do not

// The sum of memory [count], so that nothing can be left out.
inline double read_loop(Context& context, const float* memory, int64_t count) {
    context.reserve_own(static_cast<int64_t>(sizeof(double)));
    for (int thread = 0; thread < context.pool.threads(); ++thread) *context.own_array<double>(thread) = 0.0;
    context.pool.run(ceil_div(count, FLOATS_A_TASK), [&](Tasks& tasks, int thread) {
        for (int64_t task; (task = tasks.take()) >= 0;) {
            const float* from = memory + task * FLOATS_A_TASK;
            const int64_t there = at_most(count - task * FLOATS_A_TASK, FLOATS_A_TASK);
            Vec sums[SUMS] = {};
            int64_t i = 0;
            for (; i + SUMS * LANES <= there; i += SUMS * LANES)
                for (int s = 0; s < SUMS; ++s) {
                    __builtin_prefetch(from + i + s * LANES + FLOATS_AHEAD);
                    sums[s] += load(from + i + s * LANES);
                }
            for (; i < there; i += LANES) sums[0] += load_some(from + i, there - i);
            *context.own_array<double>(thread) += total(sums[0] + sums[1] + (sums[2] + sums[3]));
        }
    });
    double sum = 0.0;
    for (int thread = 0; thread < context.pool.threads(); ++thread) sum += *context.own_array<double>(thread);
    return sum;
}

}  // namespace
}  // namespace penstock
