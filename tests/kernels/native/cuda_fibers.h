// The CUDA threads of one block, as fibers of one OS thread; part of cuda_on_cpu.h.
//
// Fibers take turns where they wait, in a barrier or in a shuffle, and nowhere else. Whatever runs between two of them
// is hidden from ThreadSanitizer, to which it would look like a race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_on_cpu {

// A stack to run on: that of a CUDA thread, or the OS thread's own, which is the host's here.
struct Fiber {
  void* stack_pointer = nullptr;  // where it was left
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer = nullptr;  // AddressSanitizer: its fake stack; ThreadSanitizer: what it calls a fiber
};

// What the sanitizers must be told: when fibers come and go, when one leaves its stack and the next has arrived on its
// own, and what happens before what (all before a release is before all after a later acquire of the same token).
#if defined(__SANITIZE_ADDRESS__)

inline void create(Fiber&) {}
inline void destroy(Fiber&) {}
inline void leave(Fiber& from, const Fiber& to, bool forever) {
  from.sanitizer = nullptr;
  __sanitizer_start_switch_fiber(forever ? nullptr : &from.sanitizer, to.stack, to.stack_bytes);
}
inline void arrive(Fiber& from, const Fiber& to) {
  // Also tells the bounds of the stack left: those of the OS thread's own are known from here only.
  __sanitizer_finish_switch_fiber(to.sanitizer, &from.stack, &from.stack_bytes);
}
inline void release(void*) {}
inline void acquire(void*) {}

#elif defined(__SANITIZE_THREAD__)

inline void create(Fiber& fiber) { fiber.sanitizer = __tsan_create_fiber(0); }
inline void destroy(Fiber& fiber) { __tsan_destroy_fiber(fiber.sanitizer); }
[[gnu::no_sanitize("thread")]] inline void leave(Fiber& from, const Fiber& to, bool) {
  from.sanitizer = __tsan_get_current_fiber();
  // Taking turns must not count as synchronization, or no race between the threads of a block would be seen.
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
}
[[gnu::no_sanitize("thread")]] inline void arrive(Fiber&, const Fiber&) {}
[[gnu::no_sanitize("thread")]] inline void release(void* token) { __tsan_release(token); }
[[gnu::no_sanitize("thread")]] inline void acquire(void* token) { __tsan_acquire(token); }

#else

inline void create(Fiber&) {}
inline void destroy(Fiber&) {}
inline void leave(Fiber&, const Fiber&, bool) {}
inline void arrive(Fiber&, const Fiber&) {}
inline void release(void*) {}
inline void acquire(void*) {}

#endif

// What swap_stacks leaves on a stack, from the stack pointer up.
struct Frame {
  void *r15, *r14, *r13, *r12, *rbx, *rbp, *resume;
};

// Saves the callee-saved registers and the stack pointer at *from, and goes on where `to` was saved.
[[gnu::naked, gnu::noipa, gnu::no_stack_protector, gnu::no_sanitize("thread")]] inline void swap_stacks(void** /*from*/,
                                                                                                        void* /*to*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
      "mov %rsp, (%rdi)\n"
      "mov %rsi, %rsp\n"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
      "ret");
}

// Where a new fiber begins, with the kernel's argument at the stack pointer: what lies there when a function is called
// is its by-value argument. No frame is above this one (rip is undefined), or stack traces would look for it.
[[gnu::naked, gnu::noipa, gnu::no_stack_protector, gnu::no_sanitize("thread")]] inline void thread_main() {
  asm(".cfi_undefined rip\n"
      "call *%r12\n"
      "call *%rbx\n"
      "call *%r13");
}

struct Index {
  unsigned x;
};

constexpr unsigned kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;

struct Warp {
  uint32_t ready = kAllLanes;  // lanes that can run; those in none of the three masks wait in __syncthreads
  uint32_t shuffling = 0;      // lanes that wait for the others of the warp
  uint32_t exited = 0;
  unsigned phase = 0;  // which of the values the next shuffle uses: slow lanes may still read the others
  uint64_t value[2][kLanes];
};

struct Block {
  unsigned threads;
  Fiber* fiber;  // [threads]
  Warp* warp;    // [threads / kLanes]
  Fiber host{};  // the OS thread's own stack
  Fiber* running = &host;
  Fiber* previous = nullptr;
  unsigned arrived = 0;  // threads in __syncthreads
  unsigned phase = 0;    // as that of Warp
  // Addresses under which ThreadSanitizer keeps what happens before what. With one for both phases, a thread that is
  // late in leaving a barrier would seem to be ordered after those that have reached the next.
  char begun = 0, ended = 0, met[2] = {};
};

inline thread_local Block* block = nullptr;

}  // namespace cuda_on_cpu

inline thread_local cuda_on_cpu::Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", message);
  std::abort();
}

[[noreturn, gnu::no_sanitize("thread")]] inline void fail_deadlocked(const Block& b) {
  unsigned shuffling = 0, exited = 0;
  for (unsigned w = 0; w < b.threads / kLanes; ++w) {
    shuffling += __builtin_popcount(b.warp[w].shuffling);
    exited += __builtin_popcount(b.warp[w].exited);
  }
  std::fprintf(stderr,
               "cuda_on_cpu: %s: of the %u threads of block %u, %u wait in __syncthreads, %u wait in a warp "
               "shuffle and %u have exited\n",
               b.arrived ? "divergent barrier" : "lanes missing from a warp shuffle", b.threads, blockIdx.x, b.arrived,
               shuffling, exited);
  std::abort();
}

// A fiber that can run, of the same warp if there is one (its stacks are in the cache); the host when all have exited.
[[gnu::no_sanitize("thread")]] inline Fiber& next_fiber(Block& b) {
  const unsigned warps = b.threads / kLanes;
  unsigned w = threadIdx.x / kLanes;
  bool exited = true;
  for (unsigned i = 0; i < warps; ++i) {
    if (b.warp[w].ready) return b.fiber[w * kLanes + __builtin_ctz(b.warp[w].ready)];
    exited &= b.warp[w].exited == kAllLanes;
    w = w + 1 < warps ? w + 1 : 0;
  }
  if (!exited) fail_deadlocked(b);
  return b.host;
}

[[gnu::no_sanitize("thread")]] inline void switch_to(Block& b, Fiber& next, bool forever = false) {
  Fiber& last = *b.running;
  b.previous = &last;
  b.running = &next;
  threadIdx.x = &next == &b.host ? 0 : unsigned(&next - b.fiber);
  leave(last, next, forever);
  swap_stacks(&last.stack_pointer, next.stack_pointer);
  arrive(*b.previous, *b.running);
}

// Runs others until one of them has made this thread ready again.
[[gnu::no_sanitize("thread")]] inline void wait_turn(Block& b) {
  b.warp[threadIdx.x / kLanes].ready &= ~(1u << threadIdx.x % kLanes);
  switch_to(b, next_fiber(b));
}

[[gnu::no_sanitize("thread")]] inline void begin_thread() {
  arrive(*block->previous, *block->running);
  acquire(&block->begun);
}

[[gnu::no_sanitize("thread")]] inline void end_thread() {
  Warp& warp = block->warp[threadIdx.x / kLanes];
  const uint32_t lane = 1u << threadIdx.x % kLanes;
  warp.ready &= ~lane;
  warp.exited |= lane;
  release(&block->ended);
  switch_to(*block, next_fiber(*block), true);
}

// The block's threads meet here.
[[gnu::no_sanitize("thread")]] inline void barrier(Block& b) {
  char* const token = &b.met[b.phase];
  release(token);
  if (++b.arrived == b.threads) {
    b.arrived = 0;
    b.phase ^= 1;
    for (unsigned w = 0; w < b.threads / kLanes; ++w) b.warp[w].ready = kAllLanes;
  } else {
    wait_turn(b);
  }
  acquire(token);
}

// The value that the lane `source` of this warp calls this with.
template <class T>
[[gnu::no_sanitize("thread")]] T exchange(unsigned mask, T value, unsigned source) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
  if (mask != kAllLanes) fail("shuffles are of whole warps only: pass the mask 0xffffffff");
  Warp& warp = block->warp[threadIdx.x / kLanes];
  uint64_t* const values = warp.value[warp.phase];
  const unsigned lane = threadIdx.x % kLanes;
  std::memcpy(&values[lane], &value, sizeof value);
  warp.shuffling |= 1u << lane;
  if (warp.shuffling == kAllLanes) {
    warp.shuffling = 0;
    warp.phase ^= 1;
    warp.ready = kAllLanes;
  } else {
    wait_turn(*block);
  }
  std::memcpy(&value, &values[source], sizeof value);
  return value;
}

}  // namespace cuda_on_cpu
