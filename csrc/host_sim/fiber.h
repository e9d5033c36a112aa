// A thread of execution with its own stack, switched by hand. The address sanitizer is told of every switch.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EDLM_FIBER_ASAN 1
#else
#define EDLM_FIBER_ASAN 0
#endif

#if defined(__x86_64__)
// Saves what the System V ABI lets a callee keep, then goes on where `to` was left.
extern "C" void edlm_fiber_switch(void** from, void* to);
#else
#include <ucontext.h>
#endif

namespace edlm::host_sim {

class Fiber {
 public:
  static constexpr std::size_t kStack = 256 << 10;
  using Entry = void (*)(void*);

  Fiber() : stack_(static_cast<char*>(std::malloc(kStack))) {}
  ~Fiber() { std::free(stack_); }
  Fiber(const Fiber&) = delete;

  // The next resume() begins entry(argument), which must end in leave(true).
  void start(Entry entry, void* argument);
  void resume();              // from the scheduler; returns when the fiber leaves
  void leave(bool for_good);  // from the fiber

 private:
  static void trampoline();
  void arrive();

  char* stack_;
  Entry entry_{};
  void* argument_{};
  void* asan_fiber_{};
#if defined(__x86_64__)
  void* own_{};
#else
  ucontext_t own_{};
#endif
};

} // namespace edlm::host_sim
