#include "machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace edlm::host_sim {

Machine machine;

void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fputs("host_sim: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::fflush(nullptr);
  std::_Exit(3);
}

void Machine::seed(std::uint64_t seed) {
  seed_ = seed;
  random_.seed(seed);
}

void Machine::run(void (*kernel)(const void*), const void* params, Index grid_size, int threads, std::size_t shared) {
  if (threads < kLanes || threads > 1024 || threads % kLanes != 0) fail("a block of %d threads", threads);
  if (grid_size.y > 65535 || grid_size.z > 65535) fail("a grid of %u x %u x %u", grid_size.x, grid_size.y, grid_size.z);
  kernel_ = kernel;
  params_ = params;
  grid = grid_size;
  block = {static_cast<unsigned>(threads), 1, 1};
  count_ = threads;
  while (static_cast<int>(threads_.size()) < threads) threads_.push_back(std::make_unique<Thread>());
  std::vector<std::uint64_t> order(std::uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  if (seed_) std::shuffle(order.begin(), order.end(), random_);
  for (const std::uint64_t at : order) {
    block_index = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                   static_cast<unsigned>(at / grid.x / grid.y)};
    run_block(shared);
  }
}

void Machine::entry(void* self) {
  auto* machine = static_cast<Machine*>(self);
  machine->kernel_(machine->params_);
  Thread& thread = machine->thread();
  if (!thread.waited) fail("a thread ends without having waited for the previous kernel");
  thread.state = State::ended;
  ++machine->ended_;
  thread.fiber.leave(true);
}

void Machine::run_block(std::size_t shared) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max<std::size_t>(shared, 1)) != 0) fail("out of memory");
  shared_ = static_cast<char*>(memory);
  std::memset(shared_, 0xff, shared); // NaN in every floating type
  ended_ = at_barrier_ = 0;
  for (int i = 0; i < count_; ++i) {
    Thread& thread = *threads_[i];
    thread.state = State::ready;
    thread.index = {static_cast<unsigned>(i), 0, 0};
    thread.waited = false;
    thread.open.clear();
    thread.groups.clear();
    thread.fiber.start(&Machine::entry, this);
  }
  for (int warp = 0; ended_ < count_;) {
    warp = next_warp(warp);
    run_warp(warp);
    if (at_barrier_ == count_) release_barrier();
  }
  std::free(memory);
}

// Seed 0: warps in turn. Else the same warp for a while, so that it gets ahead of the others as far as barriers allow.
int Machine::next_warp(int warp) {
  const int warps = count_ / kLanes;
  const auto runnable = [&](int w) {
    return std::any_of(&threads_[w * kLanes], &threads_[w * kLanes] + kLanes,
                       [](const auto& thread) { return thread->state == State::ready; });
  };
  if (seed_ && random_() % 8 != 0 && runnable(warp)) return warp;
  const int first = seed_ ? static_cast<int>(random_() % warps) : warp + 1;
  for (int i = 0; i < warps; ++i)
    if (const int w = (first + i) % warps; runnable(w)) return w;
  int exchanging = 0;
  for (int i = 0; i < count_; ++i) exchanging += threads_[i]->state == State::exchanging;
  fail("block (%u, %u, %u) is stuck: of %d threads %d are at a barrier, %d in an exchange with their warp, %d ended",
       block_index.x, block_index.y, block_index.z, count_, at_barrier_, exchanging, ended_);
}

void Machine::run_warp(int warp) {
  int order[kLanes];
  std::iota(order, order + kLanes, warp * kLanes);
  if (seed_) std::shuffle(order, order + kLanes, random_);
  for (const int i : order) {
    if (threads_[i]->state != State::ready) continue;
    current_ = i;
    thread_index = threads_[i]->index;
    threads_[i]->fiber.resume();
  }
}

void Machine::release_barrier() {
  at_barrier_ = 0;
  for (int i = 0; i < count_; ++i) threads_[i]->state = State::ready;
}

void Machine::block_thread(State state) {
  Thread& self = thread();
  self.state = state;
  self.fiber.leave(false);
}

void Machine::sync_block() {
  ++at_barrier_;
  block_thread(State::at_barrier);
}

void Machine::exchange(Exchange apply, void* operand) {
  Thread& self = thread();
  self.apply = apply;
  self.operand = operand;
  const int first = current_ / kLanes * kLanes;
  void* operands[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Thread& other = *threads_[first + lane];
    if (first + lane != current_ && other.state != State::exchanging) return block_thread(State::exchanging);
    if (other.apply != apply) fail("the lanes of a warp meet in different exchanges");
    operands[lane] = other.operand;
  }
  apply(operands);
  for (int lane = 0; lane < kLanes; ++lane) threads_[first + lane]->state = State::ready;
}

// The bytes may arrive at any time until the wait: the target is lost at once, and good only after the wait.
void Machine::copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 || reinterpret_cast<std::uintptr_t>(global) % 16)
    fail("an asynchronous copy that is not aligned to 16 bytes");
  Copy copy{static_cast<char*>(shared), {}};
  if (valid) std::memcpy(copy.bytes, global, 16);
  std::memset(shared, 0xff, 16);
  thread().open.push_back(copy);
}

void Machine::copy_commit() {
  thread().groups.push_back(std::move(thread().open));
  thread().open.clear();
}

void Machine::copy_wait(int pending) {
  auto& groups = thread().groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, 16);
    groups.erase(groups.begin());
  }
}

} // namespace edlm::host_sim
