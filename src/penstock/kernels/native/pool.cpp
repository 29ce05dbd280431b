#include "pool.h"

#include <algorithm>
#include <chrono>

#include "float_state.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {
namespace {

// Between two ops of a step a worker waits some microseconds: shorter than a sleep and a wake-up take. After that it
// sleeps: spinning threads take the cores from whoever else computes.
constexpr auto SPIN = std::chrono::microseconds(40);
constexpr int LOOKS_AT_ONCE = 64;  // between two looks at the clock

// Of the tasks that are left for a thread it takes so small a part at once: others may be slower, and tasks unequal.
constexpr int64_t SHARES = 4;

// Of a gate: the workers inside in its lowest bits, then whether the call is open, then its number.
constexpr uint64_t OPEN = uint64_t{1} << 15, FIRST_NUMBER = OPEN << 1;

uint64_t number_of(uint64_t gate) { return gate / FIRST_NUMBER; }
uint64_t num_inside(uint64_t gate) { return gate & (OPEN - 1); }

void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

template <class Done>
bool spin_until(Done&& done) {
    const auto end = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int look = 0; look < LOOKS_AT_ONCE; ++look) {
            if (done()) return true;
            pause_briefly();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

}  // namespace

Tasks::Tasks(int64_t count) : count_(count) {}

int64_t Tasks::take() {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_ ? task : -1;
}

Tasks::Several Tasks::take_several(int64_t most, int threads) {
    const int64_t wanted = std::max<int64_t>(1, std::min(most, left() / (SHARES * threads)));
    const int64_t first = std::min(next_.fetch_add(wanted, std::memory_order_relaxed), count_);
    return {first, std::min(first + wanted, count_)};
}

int64_t Tasks::left() const {
    const int64_t next = next_.load(std::memory_order_relaxed);
    return next < count_ ? count_ - next : 0;
}

Pool::Pool(int threads) {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    called_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::start(const Call& call, int64_t count) {
    if (count <= 1 || workers_.empty()) {
        call.invoke(call.body, *call.tasks, 0);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        call_ = call;
        const uint64_t number = number_of(gate_.load(std::memory_order_relaxed)) + 1;
        gate_.store(number * FIRST_NUMBER | OPEN, std::memory_order_release);
    }
    called_.notify_all();
    call.invoke(call.body, *call.tasks, 0);
    close();
}

// The call lives on the caller's stack, so every worker that entered must be out of it, not only out of tasks.
void Pool::close() {
    gate_.fetch_and(~OPEN, std::memory_order_acq_rel);
    const auto done = [this] { return num_inside(gate_.load(std::memory_order_acquire)) == 0; };
    if (spin_until(done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, done);
}

bool Pool::await_call(uint64_t seen) {
    const auto ready = [this, seen] {
        return number_of(gate_.load(std::memory_order_acquire)) != seen || stopping_.load();
    };
    if (!spin_until(ready)) {
        std::unique_lock<std::mutex> lock(mutex_);
        called_.wait(lock, ready);
    }
    return !stopping_.load();
}

// Into the newest call, if it is still open; either way `seen` is its number.
bool Pool::enter(uint64_t& seen) {
    uint64_t gate = gate_.load(std::memory_order_acquire);
    do {
        seen = number_of(gate);
        if (!(gate & OPEN)) return false;
    } while (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel));
    return true;
}

void Pool::leave() {
    const uint64_t before = gate_.fetch_sub(1, std::memory_order_acq_rel);
    if (num_inside(before) > 1 || before & OPEN) return;
    std::lock_guard<std::mutex> lock(mutex_);
    finished_.notify_one();
}

void Pool::serve(int thread) {
    const FloatState state;
    for (uint64_t seen = 0; await_call(seen);) {
        if (!enter(seen)) continue;
        call_.invoke(call_.body, *call_.tasks, thread);
        leave();
    }
}

}  // namespace penstock
