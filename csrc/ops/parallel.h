#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../cpu/thread_pool.h"
#include "../plan.h"

namespace edlm {

// The threads of the calling thread: one pool for all ops.
inline cpu::ThreadPool& thread_pool() {
  thread_local cpu::ThreadPool pool;
  return pool;
}

// Calls work(begin, end) for ranges of [0, items) on threads of the caller's own, as many as torch's setting for it says;
// little work stays on the caller's.
template <class Work>
void parallel(std::int64_t items, std::int64_t cost_per_item, const Work& work) {
  const std::int64_t threads = items > 1 ? torch::stable::get_num_threads() : 1;
  const std::int64_t least = grain_size(cost_per_item);
  if (threads <= 1 || items <= least) {
    if (items > 0) work(std::int64_t{0}, items);
    return;
  }
  // ranges small enough that a thread which another process slows down holds up the end but little
  thread_pool().run(items, std::max(least, items / (8 * threads)), threads, work);
}

// Memory for one op, kept by each thread and at least as large as asked for; two uses do not share it.
template <int use>
char* scratch(std::int64_t bytes) {
  thread_local std::vector<char> memory;
  if (static_cast<std::int64_t>(memory.size()) < bytes) memory.resize(bytes);
  return memory.data();
}

} // namespace edlm
