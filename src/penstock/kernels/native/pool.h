// One team of threads that owns the cores while the library computes: the caller and `threads - 1` workers.
// Which thread takes which task is open; so no task's numbers may depend on it.
//
// A call is open from its start until the caller finds no task left; workers enter it only while it is open, and the
// caller leaves when all that entered are out. So a worker that sleeps too long is missed, not waited for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace penstock {

// The tasks of one run, handed out in order; a thread that the system has paused takes fewer.
class Tasks {
  public:
    explicit Tasks(int64_t count);
    // The next task's number, or -1 when all are taken.
    int64_t take();
    // Tasks `first` .. `end`: up to `most`, fewer when few are left for so many threads, none when all are taken.
    struct Several {
        int64_t first, end;
    };
    Several take_several(int64_t most, int threads);
    // How many are left to take.
    int64_t left() const;

  private:
    const int64_t count_;
    std::atomic<int64_t> next_{0};
};

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls work(tasks, thread) on every thread that is of use and returns when all tasks are done.
    template <class Work>
    void run(int64_t count, Work&& work) {
        Tasks tasks(count);
        Call call{&tasks, &work, [](void* body, Tasks& all, int thread) { (*static_cast<Work*>(body))(all, thread); }};
        start(call, count);
    }

    // Calls work(task) for every task.
    template <class Work>
    void each(int64_t count, Work&& work) {
        run(count, [&](Tasks& tasks, int) {
            for (int64_t task; (task = tasks.take()) >= 0;) work(task);
        });
    }

  private:
    struct Call {
        Tasks* tasks;
        void* body;
        void (*invoke)(void*, Tasks&, int);
    };

    void start(const Call& call, int64_t count);
    void close();
    void serve(int thread);
    bool await_call(uint64_t seen);
    bool enter(uint64_t& seen);
    void leave();

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable called_, finished_;
    std::atomic<uint64_t> gate_{0};  // the number of the newest call, whether it is open, and how many workers are in it
    std::atomic<bool> stopping_{false};
    Call call_{};  // of that number; written only while no worker is in
};

}  // namespace penstock
