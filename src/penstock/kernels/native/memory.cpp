#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace penstock {
namespace {

constexpr size_t LINE = 64, HUGE_PAGE = size_t{1} << 21;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Memory::~Memory() { std::free(start_); }

Memory::Memory(Memory&& other) noexcept : start_(other.start_), bytes_(other.bytes_) {
    other.start_ = nullptr;
    other.bytes_ = 0;
}

void* Memory::reserve(size_t bytes) {
    if (bytes <= bytes_) return start_;
    std::free(start_);
    start_ = nullptr;
    bytes_ = 0;
    const size_t unit = bytes >= HUGE_PAGE ? HUGE_PAGE : LINE;
    const size_t rounded = round_up(bytes, unit);
    start_ = std::aligned_alloc(unit, rounded);
    if (start_ == nullptr) throw std::bad_alloc();
    bytes_ = rounded;
    prefer_huge_pages(start_, bytes_);
    return start_;
}

void prefer_huge_pages(void* start, size_t bytes) {
#if defined(__linux__)
    const auto begin = round_up(reinterpret_cast<uintptr_t>(start), HUGE_PAGE);
    const auto end = (reinterpret_cast<uintptr_t>(start) + bytes) / HUGE_PAGE * HUGE_PAGE;
    // A wish: where the system does not grant it, small pages hold the same bytes.
    if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)start;
    (void)bytes;
#endif
}

}  // namespace penstock
