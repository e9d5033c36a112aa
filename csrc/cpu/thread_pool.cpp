#include "thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>

namespace edlm::cpu {
namespace {

// To wake a sleeping thread takes some 50 microseconds, as long as a small op: a forward's next op comes sooner.
constexpr std::chrono::microseconds kSpin{60};

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
  {
    const std::lock_guard lock(mutex_);
    job_ = &job;
    ++posted_;
  }
  wake_.notify_all();
  job.take();
  {
    const std::lock_guard lock(mutex_);
    job_ = nullptr; // who has not woken up yet is not waited for
  }
  if (!spin_until([&] { return inside_ == 0; })) {
    std::unique_lock lock(mutex_);
    left_.wait(lock, [&] { return inside_ == 0; });
  }
  if (job.error) std::rethrow_exception(job.error);
}

bool ThreadPool::wait_for_job(std::uint64_t seen) {
  if (!spin_until([&] { return posted_ != seen; })) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return posted_ != seen; });
  }
  const std::lock_guard lock(mutex_);
  return !stop_;
}

void ThreadPool::serve() {
  std::uint64_t seen = 0;
  while (wait_for_job(seen)) {
    Job* job;
    {
      const std::lock_guard lock(mutex_);
      seen = posted_;
      job = job_;
      if (job) ++inside_;
    }
    if (!job) continue;
    job->take();
    {
      const std::lock_guard lock(mutex_); // the caller must not miss it between its look and its sleep
      --inside_;
    }
    left_.notify_one();
  }
}

void ThreadPool::resize(std::size_t threads) {
  if (process_ != getpid()) { // whatever held or awaited them is in the parent
    new std::vector<std::thread>(std::move(workers_)); // never freed: these can neither be joined nor detached
    new (&mutex_) std::mutex;
    new (&wake_) std::condition_variable;
    new (&left_) std::condition_variable;
    inside_ = 0;
  } else {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      ++posted_;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  workers_.clear();
  process_ = getpid();
  stop_ = false;
  posted_ = 0;
  while (workers_.size() + 1 < threads) workers_.emplace_back([this] { serve(); });
}

} // namespace edlm::cpu
