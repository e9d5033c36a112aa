// Threads of one caller that take items in turn and sleep in between. OpenMP's barrier is no place to wait on a machine
// with other work: it spins, or hands every thread its share beforehand, however slow that thread is just now.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace edlm::cpu {

class ThreadPool {
 public:
  ThreadPool() = default;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { resize(1); }

  // Calls work(begin, end) for ranges of at most `grain` items of [0, items), on this thread and up to threads - 1
  // others, and returns when all are done. The first exception of a range is thrown here, after the others' end.
  template <class Work>
  void run(std::int64_t items, std::int64_t grain, std::int64_t threads, const Work& work) {
    if (threads <= 1 || items <= grain) {
      if (items > 0) work(std::int64_t{0}, items);
      return;
    }
    Job job{[](const void* w, std::int64_t begin, std::int64_t end) { (*static_cast<const Work*>(w))(begin, end); },
            &work, items, grain};
    share(job, threads);
  }

 private:
  struct Job {
    void (*call)(const void* work, std::int64_t begin, std::int64_t end);
    const void* work;
    std::int64_t items, grain;
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};

    void take();
  };

  void share(Job& job, std::int64_t threads);
  void post();
  void wait_for_workers();
  void wait_for_post(std::uint64_t seen);
  void resize(std::size_t threads); // this one included
  void serve();

  std::vector<std::thread> workers_;
  std::int64_t process_ = 0; // a forked child has the pool's memory but none of its threads

  // Nobody who is awake takes the mutex: to be put to sleep by it would cost more than most jobs. Whoever is about to
  // sleep says so before a last look; who changes something looks for sleepers afterwards.
  std::atomic<Job*> job_{nullptr};       // null: nothing to join
  std::atomic<int> inside_{0};           // workers that may hold job_
  std::atomic<std::uint64_t> posted_{0}; // changes with every job, and at the end
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};           // workers
  std::atomic<bool> caller_asleep_{false};
  std::mutex mutex_;
  std::condition_variable wake_, left_;
};

} // namespace edlm::cpu
