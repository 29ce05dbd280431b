#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#if !defined(MADV_POPULATE_WRITE)
#define MADV_POPULATE_WRITE 23  // of Linux 5.14, which may be newer than the headers
#endif
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

void populate(Pool& pool, const Piece* pieces, size_t count) {
#if defined(__linux__)
    const auto small_page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::vector<std::pair<uintptr_t, uintptr_t>> pages;
    for (const Piece* piece = pieces; piece < pieces + count; ++piece) {
        const auto start = reinterpret_cast<uintptr_t>(piece->start);
        const uintptr_t end = round_up(start + piece->bytes, small_page);
        for (uintptr_t at = start / small_page * small_page, next; at < end; at = next) {
            next = std::min(end, (at / HUGE_PAGE + 1) * HUGE_PAGE);
            pages.emplace_back(at, next);
        }
    }
    pool.each(static_cast<int64_t>(pages.size()), [&](int64_t task) {
        const auto [at, end] = pages[static_cast<size_t>(task)];
        // A wish: where the system does not grant it, pages come when they are written to.
        (void)madvise(reinterpret_cast<void*>(at), end - at, MADV_POPULATE_WRITE);
    });
#else
    (void)pool;
    (void)pieces;
    (void)count;
#endif
}

}  // namespace penstock
