#include "fiber.h"

#include <cstdint>

#if defined(__x86_64__)
asm(R"(
.text
.globl edlm_fiber_switch
.type edlm_fiber_switch, @function
edlm_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size edlm_fiber_switch, .-edlm_fiber_switch
)");
#endif

namespace edlm::host_sim {
namespace {

Fiber* running = nullptr;
void* scheduler_asan = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
#if defined(__x86_64__)
void* scheduler = nullptr;
#else
ucontext_t scheduler;
#endif

void announce([[maybe_unused]] void** keep, [[maybe_unused]] const void* stack, [[maybe_unused]] std::size_t size) {
#if EDLM_FIBER_ASAN
  __sanitizer_start_switch_fiber(keep, stack, size);
#endif
}

} // namespace

void Fiber::arrive() {
#if EDLM_FIBER_ASAN
  __sanitizer_finish_switch_fiber(asan_fiber_, &scheduler_stack, &scheduler_size);
#endif
}

void Fiber::trampoline() {
  Fiber* self = running;
  self->arrive();
  self->entry_(self->argument_);
}

void Fiber::start(Entry entry, void* argument) {
  entry_ = entry;
  argument_ = argument;
  asan_fiber_ = nullptr;
#if EDLM_FIBER_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack_, kStack); // of frames that were left for good
#endif
#if defined(__x86_64__)
  auto* top = reinterpret_cast<void**>(stack_ + kStack);
  *--top = nullptr; // a return address that is never used, so that the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(&Fiber::trampoline);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  own_ = top;
#else
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = kStack;
  own_.uc_link = nullptr;
  makecontext(&own_, &Fiber::trampoline, 0);
#endif
}

void Fiber::resume() {
  running = this;
  announce(&scheduler_asan, stack_, kStack);
#if defined(__x86_64__)
  edlm_fiber_switch(&scheduler, own_);
#else
  swapcontext(&scheduler, &own_);
#endif
#if EDLM_FIBER_ASAN
  __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
#endif
}

void Fiber::leave(bool for_good) {
  announce(for_good ? nullptr : &asan_fiber_, scheduler_stack, scheduler_size);
#if defined(__x86_64__)
  edlm_fiber_switch(&own_, scheduler);
#else
  swapcontext(&own_, &scheduler);
#endif
  arrive();
}

} // namespace edlm::host_sim
