// Many short and long calls of a pool, back to back and after pauses in which its workers fall asleep. Every task must
// run once, and what it wrote must be there when the call returns. Built with ThreadSanitizer by test_pool.py.
#include "pool.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>

int main(int, char** arguments) {
    const int threads = std::atoi(arguments[1]), calls = std::atoi(arguments[2]);
    penstock::Pool pool(threads);
    std::vector<int> ran;
    unsigned random = 1;
    for (int call = 0; call < calls; ++call) {
        random = random * 1664525U + 1013904223U;
        const int64_t count = random >> 16 & 63;
        ran.assign(static_cast<size_t>(count), 0);  // plain numbers: a race on them is reported
        const auto work = [&](int64_t task) {
            ++ran[static_cast<size_t>(task)];
            if (call % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds(20));
        };
        if (call % 2 == 0)
            pool.each(count, work);
        else
            pool.run(count, [&](penstock::Tasks& tasks, int) {
                for (auto some = tasks.take_several(5, threads); some.first < some.end; some = tasks.take_several(5, threads))
                    for (int64_t task = some.first; task < some.end; ++task) work(task);
            });
        for (const int times : ran)
            if (times != 1) {
                std::printf("call %d: a task ran %d times\n", call, times);
                return 1;
            }
        if (call % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random >> 24));
    }
    std::puts("done");
    return 0;
}
