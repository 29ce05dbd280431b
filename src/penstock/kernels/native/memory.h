// Working memory that grows and is kept from call to call.
#pragma once

#include <cstddef>

#include "pool.h"

namespace penstock {

class Memory {
  public:
    Memory() = default;
    ~Memory();
    Memory(Memory&& other) noexcept;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // At least `bytes`, aligned to a cache line; what was there before is lost. Throws std::bad_alloc.
    void* reserve(size_t bytes);

    template <class T>
    T* reserve_array(size_t count) {
        return static_cast<T*>(reserve(count * sizeof(T)));
    }

  private:
    void* start_ = nullptr;
    size_t bytes_ = 0;
};

// Asks for 2 MiB pages behind memory that was not touched yet: a page of 4 KiB holds only two tiles' rows of weights.
void prefer_huge_pages(void* start, size_t bytes);

struct Piece {
    void* start;
    size_t bytes;
};

// Has the pages behind some memory, on all threads; what is written there stays. Threads that come upon new pages as
// they compute are all in the same one, and all but one wait for it.
void populate(Pool& pool, const Piece* pieces, size_t count);

}  // namespace penstock
