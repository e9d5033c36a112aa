#include "thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>

namespace edlm::cpu {
namespace {

// To wake a sleeping thread takes some 50 microseconds, as long as a small op: a forward's next op comes sooner.
constexpr std::chrono::microseconds kSpin{100};

template <class Condition>
bool spin_until(const Condition& met) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (met()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  } while (std::chrono::steady_clock::now() < end);
  return met();
}

} // namespace

void ThreadPool::Job::take() {
  try {
    for (std::int64_t begin; (begin = next.fetch_add(grain)) < items;) call(work, begin, std::min(items, begin + grain));
  } catch (...) {
    next = items; // nobody begins another range
    if (!failed.exchange(true)) error = std::current_exception();
  }
}

void ThreadPool::share(Job& job, std::int64_t threads) {
  if (static_cast<std::int64_t>(workers_.size()) + 1 != threads || process_ != getpid())
    resize(static_cast<std::size_t>(threads));
  job_ = &job;
  post();
  job.take();
  job_ = nullptr; // who has not joined by now is not waited for
  wait_for_workers();
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::post() {
  ++posted_;
  if (asleep_ == 0) return;
  { const std::lock_guard lock(mutex_); } // a worker between its last look and its sleep is let go on to it
  wake_.notify_all();
}

void ThreadPool::wait_for_post(std::uint64_t seen) {
  if (spin_until([&] { return posted_ != seen; })) return;
  std::unique_lock lock(mutex_);
  ++asleep_;
  wake_.wait(lock, [&] { return posted_ != seen; });
  --asleep_;
}

void ThreadPool::wait_for_workers() {
  if (spin_until([&] { return inside_ == 0; })) return;
  std::unique_lock lock(mutex_);
  caller_asleep_ = true;
  left_.wait(lock, [&] { return inside_ == 0; });
  caller_asleep_ = false;
}

void ThreadPool::serve() {
  for (std::uint64_t seen = 0; !stop_;) {
    wait_for_post(seen);
    seen = posted_;
    ++inside_; // before the look: the caller takes job_ away before it counts
    if (Job* job = job_) job->take();
    if (--inside_ == 0 && caller_asleep_) {
      { const std::lock_guard lock(mutex_); }
      left_.notify_one();
    }
  }
}

void ThreadPool::resize(std::size_t threads) {
  if (process_ != getpid()) { // whatever held or awaited them is in the parent
    new std::vector<std::thread>(std::move(workers_)); // never freed: these can neither be joined nor detached
    new (&mutex_) std::mutex;
    new (&wake_) std::condition_variable;
    new (&left_) std::condition_variable;
    inside_ = asleep_ = 0;
  } else {
    stop_ = true;
    post();
    for (auto& worker : workers_) worker.join();
  }
  workers_.clear();
  process_ = getpid();
  stop_ = false;
  posted_ = 0;
  while (workers_.size() + 1 < threads) workers_.emplace_back([this] { serve(); });
}

} // namespace edlm::cpu
