// Drawing a token from each row of logits, by the rules of sampling.py. Included once for each instruction set.
//
// A weight is a whole number, so sums of weights are exact in any order: which tokens are looked at, and in what order,
// changes no result. Nothing is sorted but the few tokens that lie where the ranking is cut.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "ops.h"
#include "vectors.h"

namespace penstock {
namespace {

constexpr int64_t SPAN = 128;      // tokens whose highest logit is noted, so that most spans can be passed over
constexpr int64_t BUCKETS = 2048;  // of a ranking, by distance from the highest logit
constexpr float LOWEST = -FLT_MAX;  // below it are banned tokens only
constexpr double ONE = static_cast<double>(int64_t{1} << 40);  // the weight of the highest logit
constexpr double NO_FRACTION = 4503599627370496.0;             // 2^52: adding it leaves no bits behind the point
constexpr int64_t NO_FRACTION_BITS = 0x4330000000000000;
constexpr double NO_WEIGHT = 29.0;  // exp(-29) is less than half of 1 / ONE

typedef float HalfFloats __attribute__((vector_size(LANES * 2)));
typedef double Wide __attribute__((vector_size(LANES * 4)));
typedef int64_t Whole __attribute__((vector_size(LANES * 4)));

// The last token that a ranking by (logit descending, id ascending) keeps.
struct Cut {
    float logit = -INFINITY;
    int32_t id = INT32_MAX;
};

// A thread's working memory for rows of n tokens.
struct DrawMemory {
    int64_t *masses, *buckets;
    float *maxima, *some_maxima, *logits;
    int32_t* ids;

    static int64_t bytes(int64_t n) { return ceil_div(n, SPAN) * 16 + (BUCKETS + 1) * 8 + n * 8; }
    DrawMemory(char* start, int64_t n) {
        const int64_t spans = ceil_div(n, SPAN);
        masses = reinterpret_cast<int64_t*>(start);
        buckets = masses + spans;
        maxima = reinterpret_cast<float*>(buckets + BUCKETS + 1);
        some_maxima = maxima + spans;
        logits = some_maxima + spans;
        ids = reinterpret_cast<int32_t*>(logits + n);
    }
};

// Logits, and which of them still have a weight.
struct Ranked {
    const float* logits;
    int64_t n;
    DrawMemory memory;
    float highest = -INFINITY, temperature = 1.0F;
    int64_t best = 0;  // the lowest id with the highest logit
    bool finite = true;
    Cut cut{};
    int64_t least = 0;  // a smaller weight counts as none

    int64_t spans() const { return ceil_div(n, SPAN); }
    int64_t length(int64_t span) const { return at_most(SPAN, n - span * SPAN); }
    bool before(int32_t a, int32_t b) const { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); }
};

PENSTOCK_INLINE Vec load_filled(const float* from, int64_t count, float fill) {
    if (count >= LANES) return load(from);
    float line[LANES];
    for (int i = 0; i < LANES; ++i) line[i] = i < count ? from[i] : fill;
    return load(line);
}

// Notes the highest logit of each span, and of all; and whether all are finite.
Ranked rank(const float* logits, int64_t n, const DrawMemory& memory) {
    Ranked row{logits, n, memory};
    IntVec finite = lane_numbers() >= 0;
    int64_t best_span = 0;
    for (int64_t span = 0; span < row.spans(); ++span) {
        const float* x = logits + span * SPAN;
        Vec top = splat(-INFINITY);
        for (int64_t i = 0; i < row.length(span); i += LANES) {
            const Vec v = load_filled(x + i, row.length(span) - i, x[0]);
            const Vec zero = v - v;  // a NaN where v is not finite
            finite &= zero == zero;
            top = v > top ? v : top;
        }
        memory.maxima[span] = ::highest(top);
        if (memory.maxima[span] > row.highest) {
            row.highest = memory.maxima[span];
            best_span = span;
        }
    }
    for (int i = 0; i < LANES; ++i) row.finite = row.finite && finite[i];
    row.best = best_span * SPAN;
    while (row.best < n - 1 && logits[row.best] != row.highest) ++row.best;
    return row;
}

int64_t count_bad(const float* logits, int64_t n) {
    int64_t bad = 0;
    for (int64_t i = 0; i < n; ++i) bad += !std::isfinite(logits[i]);
    return bad;
}

PENSTOCK_INLINE Whole weigh(HalfFloats x, int64_t least) {
    const Wide wide = __builtin_convertvector(x, Wide) * ONE + NO_FRACTION;
    const Whole weights = (Whole)wide - NO_FRACTION_BITS;
    return weights >= least ? weights : Whole{};
}

// The weights of a span's tokens, and their sum.
int64_t weigh_span(const Ranked& row, int64_t span, int64_t* weights) {
    Whole sum{};
    for (int64_t i = 0; i < row.length(span); i += LANES) {
        const int64_t at = span * SPAN + i;
        const Vec x = load_filled(row.logits + at, row.n - at, -INFINITY);
        const IntVec ids = lane_numbers() + static_cast<int32_t>(at);
        const IntVec kept = (x > row.cut.logit) | ((x == row.cut.logit) & (ids <= row.cut.id));
        const Vec all = exp((x - row.highest) / row.temperature), some = kept ? all : Vec{};
        HalfFloats half[2];
        std::memcpy(half, &some, sizeof half);
        const Whole first = weigh(half[0], row.least), second = weigh(half[1], row.least);
        std::memcpy(weights + i, &first, sizeof first);
        std::memcpy(weights + i + LANES / 2, &second, sizeof second);
        sum += first + second;
    }
    int64_t total = 0;
    for (int i = 0; i < LANES / 2; ++i) total += sum[i];
    return total;
}

// The weight of each span, and of all.
int64_t weigh_all(const Ranked& row) {
    int64_t total = 0, weights[SPAN];
    for (int64_t span = 0; span < row.spans(); ++span) {
        const bool kept = row.memory.maxima[span] >= row.cut.logit;
        row.memory.masses[span] = kept ? weigh_span(row, span, weights) : 0;
        total += row.memory.masses[span];
    }
    return total;
}

// Which part of the ranking a logit is in: of BUCKETS parts between the highest logit and `floor`, and one for the rest.
struct Parts {
    float highest, scale;

    Parts(const Ranked& row, float floor) : highest(row.highest), scale(0) {
        const float reach = highest - floor;
        if (reach > 0) scale = BUCKETS / reach;
    }
    PENSTOCK_INLINE void of_span(const Ranked& row, int64_t span, int32_t* parts) const {
        for (int64_t i = 0; i < row.length(span); i += LANES) {
            const int64_t at = span * SPAN + i;
            const Vec place = (highest - load_filled(row.logits + at, row.n - at, -INFINITY)) * scale;
            const IntVec part = __builtin_convertvector(place < BUCKETS ? place : splat(BUCKETS), IntVec);
            std::memcpy(parts + i, &part, sizeof part);
        }
    }
};

// Keeps the tokens that have less than `limit` before them in rank: so many tokens, or so much weight if `weighed`.
// There must be none with a logit below `floor`. Only the part of the ranking in which it is cut is sorted.
Cut find_cut(const Ranked& row, float floor, bool weighed, int64_t limit) {
    const Parts parts(row, floor);
    int64_t *buckets = row.memory.buckets, weights[SPAN];
    int32_t *ids = row.memory.ids, part[SPAN];
    std::fill_n(buckets, BUCKETS + 1, 0);
    std::fill_n(weights, SPAN, 1);
    for (int64_t span = 0; span < row.spans(); ++span) {
        if (row.memory.maxima[span] < floor) continue;
        parts.of_span(row, span, part);
        if (weighed) weigh_span(row, span, weights);
        for (int64_t i = 0; i < row.length(span); ++i) buckets[part[i]] += weights[i];
    }
    int64_t before = 0, at = 0, count = 0;
    while (at < BUCKETS && before + buckets[at] < limit) before += buckets[at++];
    for (int64_t span = 0; span < row.spans(); ++span) {
        if (row.memory.maxima[span] < floor) continue;
        parts.of_span(row, span, part);
        for (int64_t i = 0; i < row.length(span); ++i) {
            ids[count] = static_cast<int32_t>(span * SPAN + i);
            count += part[i] == at;
        }
    }
    std::sort(ids, ids + count, [&](int32_t a, int32_t b) { return row.before(a, b); });
    int64_t kept = 0;
    for (; kept < count && before < limit; ++kept) {
        if (weighed) weigh_span(row, ids[kept] / SPAN, weights);
        before += weights[ids[kept] % SPAN];
    }
    return {row.logits[ids[kept - 1]], ids[kept - 1]};
}

// A logit that `count` tokens reach: as many spans have one.
float floor_of_rank(const Ranked& row, int64_t count) {
    float floor = row.highest;
    if (count <= row.spans()) {
        float* some = row.memory.some_maxima;
        std::copy_n(row.memory.maxima, row.spans(), some);
        std::nth_element(some, some + count - 1, some + row.spans(), std::greater<float>());
        floor = some[count - 1];
        if (floor >= LOWEST) return floor;
    }
    for (int64_t i = 0; i < row.n; ++i)
        if (row.logits[i] >= LOWEST && row.logits[i] < floor) floor = row.logits[i];
    return floor >= LOWEST ? floor : row.highest;
}

// A logit below which all tokens together weigh at most `spare`.
float floor_of_weight(const Ranked& row, int64_t spare) {
    const int64_t each = spare / row.n;
    double distance = NO_WEIGHT;
    if (each >= 4096) distance = std::log(ONE / static_cast<double>(each)) + 0.002;  // more than rounding can take
    const auto floor = static_cast<float>(row.highest - row.temperature * distance);
    return std::max(LOWEST, std::nextafter(floor, -INFINITY));
}

int64_t whole_part(double share, int64_t total) {
    return static_cast<int64_t>(std::ceil(share * static_cast<double>(total)));
}

int64_t draw_random(Ranked& row, const Draw& draw) {
    row.temperature = draw.temperature;
    if (draw.top_k > 0 && draw.top_k < row.n)
        row.cut = find_cut(row, floor_of_rank(row, draw.top_k), false, draw.top_k);
    if (draw.top_p < 1.0) {
        const int64_t total = weigh_all(row), limit = whole_part(draw.top_p, total);
        const float floor = std::max(floor_of_weight(row, total - limit), row.cut.logit);
        row.cut = find_cut(row, floor, true, limit);
    }
    row.least = whole_part(draw.min_p, static_cast<int64_t>(ONE));
    const int64_t total = weigh_all(row);
    int64_t left = std::min(static_cast<int64_t>(draw.uniform * static_cast<double>(total)), total - 1);
    int64_t span = 0, i = 0, weights[SPAN];
    while (left >= row.memory.masses[span]) left -= row.memory.masses[span++];
    weigh_span(row, span, weights);
    while (left >= weights[i]) left -= weights[i++];
    return span * SPAN + i;
}

const float* changed(const float* logits, int64_t n, const Draw& draw, float* copy) {
    if (!draw.changes) return logits;
    std::memcpy(copy, logits, static_cast<size_t>(n) * sizeof(float));
    for (int64_t i = 0; i < draw.changes; ++i) copy[draw.changed[i]] += draw.amounts[i];
    return copy;
}

// The best tokens in order of rank.
void find_top(const Ranked& row, const Draw& draw) {
    if (!draw.num_top) return;
    const Cut cut = find_cut(row, floor_of_rank(row, draw.num_top), false, draw.num_top);
    int64_t count = 0;
    for (int64_t span = 0; span < row.spans(); ++span) {
        if (row.memory.maxima[span] < cut.logit) continue;
        for (int64_t id = span * SPAN; id < span * SPAN + row.length(span); ++id)
            if (row.logits[id] > cut.logit || (row.logits[id] == cut.logit && id <= cut.id)) draw.top[count++] = id;
    }
    std::sort(draw.top, draw.top + count, [&](int64_t a, int64_t b) {
        return row.before(static_cast<int32_t>(a), static_cast<int32_t>(b));
    });
    for (int64_t i = 0; i < count; ++i) draw.top_logits[i] = row.logits[draw.top[i]];
}

void draw_row(const float* logits, int64_t n, Draw& draw, const DrawMemory& memory) {
    Ranked row = rank(logits, n, memory);
    draw.token = row.best;
    draw.bad = row.finite ? 0 : count_bad(logits, n);
    if (draw.bad) return;
    if (draw.weighed) {
        draw.highest = row.highest;
        draw.total = weigh_all(row);
        find_top(row, draw);
    }
    if (draw.changes) row = rank(changed(logits, n, draw, memory.logits), n, memory);
    draw.token = row.best;
    draw.possible = row.highest >= LOWEST;
    if (draw.possible && draw.temperature > 0) draw.token = draw_random(row, draw);
    draw.logit = logits[draw.token];
}

void draw_rows(Context& context, const Draws& draws) {
    context.reserve_own(DrawMemory::bytes(draws.vocab));
    context.pool.run(draws.rows, [&](Tasks& tasks, int thread) {
        const DrawMemory memory(context.own_array<char>(thread), draws.vocab);
        for (int64_t row; (row = tasks.take()) >= 0;)
            draw_row(draws.logits + row * draws.vocab, draws.vocab, draws.draws[row], memory);
    });
}

}  // namespace
}  // namespace penstock
