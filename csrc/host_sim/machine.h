// One thread block at a time, every CUDA thread a fiber. Threads run one by one until they meet a barrier or an
// exchange between the lanes of their warp; which one runs next is a matter of the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "fiber.h"

namespace edlm::host_sim {

constexpr int kLanes = 32;

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// Ends the process: there is no way back from half a block.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

class Machine {
 public:
  // Every lane of a warp brings an operand; the last one to come applies the exchange to all 32.
  using Exchange = void (*)(void* const* operands);

  void seed(std::uint64_t seed);
  void run(void (*kernel)(const void*), const void* params, Index grid, int threads, std::size_t shared);

  // What a thread can do.
  void exchange(Exchange apply, void* operand);
  void sync_block();
  void copy_async(void* shared, const void* global, bool valid);
  void copy_commit();
  void copy_wait(int pending);
  void previous_kernel_waited_for() { thread().waited = true; }
  char* shared_memory() const { return shared_; }

  Index grid, block, thread_index, block_index;

 private:
  enum class State { ready, exchanging, at_barrier, ended };
  struct Copy {
    char* to;
    char bytes[16];
  };
  struct Thread {
    Fiber fiber;
    State state{};
    Index index;
    Exchange apply{};
    void* operand{};
    bool waited{};
    std::vector<Copy> open;                // copies of no group yet
    std::vector<std::vector<Copy>> groups; // committed, oldest first
  };

  static void entry(void* machine);
  Thread& thread() { return *threads_[current_]; }
  void run_block(std::size_t shared);
  void run_warp(int warp);
  int next_warp(int warp);
  void release_barrier();
  void block_thread(State state);

  std::vector<std::unique_ptr<Thread>> threads_;
  int current_ = 0, count_ = 0, ended_ = 0, at_barrier_ = 0;
  void (*kernel_)(const void*) = nullptr;
  const void* params_ = nullptr;
  char* shared_ = nullptr;
  std::uint64_t seed_ = 0;
  std::mt19937_64 random_;
};

extern Machine machine;

} // namespace edlm::host_sim
