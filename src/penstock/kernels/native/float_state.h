// How a thread rounds, and what it does with denormal numbers: a thread's own, and some libraries change it.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {

// While it lives, its thread rounds to nearest and keeps denormal numbers, whatever was set before; then that is back.
class FloatState {
  public:
    FloatState() : before_(get()) { set(USUAL); }
    ~FloatState() { set(before_); }
    FloatState(const FloatState&) = delete;
    FloatState& operator=(const FloatState&) = delete;

  private:
#if defined(__x86_64__)
    static constexpr uint64_t USUAL = 0x1f80;  // of MXCSR: every exception masked
    static uint64_t get() { return _mm_getcsr(); }
    static void set(uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
#elif defined(__aarch64__)
    static constexpr uint64_t USUAL = 0;  // of FPCR
    static uint64_t get() {
        uint64_t state;
        __asm__ volatile("mrs %0, fpcr" : "=r"(state));
        return state;
    }
    static void set(uint64_t state) { __asm__ volatile("msr fpcr, %0" ::"r"(state)); }
#else
    static constexpr uint64_t USUAL = 0;  // nothing is known about others
    static uint64_t get() { return 0; }
    static void set(uint64_t) {}
#endif

    const uint64_t before_;
};

}  // namespace penstock
