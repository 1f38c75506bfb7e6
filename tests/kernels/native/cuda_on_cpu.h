// CUDA sources compiled by g++ and run on the CPU, so that their kernels can be tested without a device and under the
// sanitizers:
//
//   g++ -std=c++17 -x c++ -include tests/native/cuda_on_cpu.h -c csrc/cuda/<name>.cu
//
// A launch runs its blocks on a few OS threads (environment: CUDA_ON_CPU_THREADS, else 2; block b on thread b modulo
// their number) and returns when all are done. The CUDA threads of a block are fibers of its OS thread: they take turns
// where they wait, in __syncthreads and in warp shuffles, and nowhere else. Shared memory is filled with 0xff (NaN, or
// -1) before each block, since CUDA leaves it undefined. A block that can never go on ends the process with a message.
//
// ThreadSanitizer takes fibers for threads. It reports accesses that no __syncthreads orders (a shuffle orders no
// memory, as in CUDA), and races between blocks that run on different OS threads: give it as many as there are blocks.
//
// For g++ on x86-64 Linux. Blocks are of one dimension and of whole warps; shuffles are of whole warps.
#pragma once

#include <link.h>
// Not <cmath>: CUDA has the overloads for float in the global namespace.
#include <math.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_fibers.h"

// ---------------------------------------------------------------------------------------------------------------------
// CUDA's markers, types and functions of the host
// ---------------------------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// An OS thread runs one block at a time.
#define __shared__ static thread_local

// CUDA's compiler lets them stand for whatever lies in memory.
struct alignas(8) [[gnu::may_alias]] int2 {
  int x, y;
};
struct alignas(16) [[gnu::may_alias]] int4 {
  int x, y, z, w;
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };

namespace cuda_on_cpu {
inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t noted(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
}  // namespace cuda_on_cpu

inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::last_error, cudaSuccess); }

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaSetDevice(int device) {
  return cuda_on_cpu::noted(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

struct cudaFuncAttributes {};

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA's functions of the device
// ---------------------------------------------------------------------------------------------------------------------

inline void __syncthreads() { cuda_on_cpu::barrier(*cuda_on_cpu::block); }

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % cuda_on_cpu::kLanes;
  return cuda_on_cpu::exchange(mask, value, delta < cuda_on_cpu::kLanes - lane ? lane + delta : lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  const unsigned lane = threadIdx.x % cuda_on_cpu::kLanes;
  return cuda_on_cpu::exchange(mask, value, (lane ^ unsigned(lane_mask)) % cuda_on_cpu::kLanes);
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

template <class T>
T __ldcs(const T* address) {
  return *address;
}

inline void __nanosleep(unsigned) { std::this_thread::yield(); }

template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

namespace cuda {

constexpr int memory_order_relaxed = __ATOMIC_RELAXED, memory_order_acquire = __ATOMIC_ACQUIRE,
              memory_order_release = __ATOMIC_RELEASE, memory_order_acq_rel = __ATOMIC_ACQ_REL;
enum thread_scope { thread_scope_device };

template <class T, thread_scope>
class atomic_ref {
 public:
  explicit atomic_ref(T& value) : value_(&value) {}
  T load(int order) const { return __atomic_load_n(value_, order); }
  void store(T value, int order) const { __atomic_store_n(value_, value, order); }
  T fetch_add(T value, int order) const { return __atomic_fetch_add(value_, value, order); }

 private:
  T* value_;
};

}  // namespace cuda

// ---------------------------------------------------------------------------------------------------------------------
// Launches
// ---------------------------------------------------------------------------------------------------------------------

namespace cuda_on_cpu {

constexpr size_t kArgumentBytes = 32764;  // CUDA's limit
constexpr unsigned kMaxThreads = 1024;    // CUDA's limit

// Of a CUDA thread: its argument, with AddressSanitizer a copy of it, and far more than the kernels' frames take.
constexpr size_t kStackBytes = 160 << 10;

struct Launch {
  void (*kernel)();
  void (*call)();  // finds the argument at the stack pointer
  const void* argument;
  size_t argument_bytes;
  unsigned blocks, threads;
};

// The argument of this OS thread's launch, for kernels that do not find it on the stack.
inline thread_local const Launch* launched = nullptr;

// Arguments of up to 16 bytes travel in registers.
template <class Argument>
void call_with_registers() {
  reinterpret_cast<void (*)(Argument)>(launched->kernel)(*static_cast<const Argument*>(launched->argument));
}

// The memory of this OS thread that the thread_local variables of this program or library lie in: `variable` is one.
struct ThreadStorage {
  const void* variable;
  char* begin = nullptr;
  size_t bytes = 0;

  explicit ThreadStorage(const void* one) : variable(one) { dl_iterate_phdr(look, this); }

 private:
  // Whether it is that of this module.
  static int look(dl_phdr_info* module, size_t, void* found) {
    auto& storage = *static_cast<ThreadStorage*>(found);
    for (const ElfW(Phdr)* header = module->dlpi_phdr; header < module->dlpi_phdr + module->dlpi_phnum; ++header) {
      const auto offset = uintptr_t(storage.variable) - uintptr_t(module->dlpi_tls_data);
      if (header->p_type != PT_TLS || !module->dlpi_tls_data || offset >= header->p_memsz) continue;
      storage.begin = static_cast<char*>(module->dlpi_tls_data);
      storage.bytes = header->p_memsz;
      return 1;
    }
    return 0;
  }
};

// The fibers of one OS thread. Each begins at the top of its stack, where its argument lies.
class Crew {
 public:
  Crew() {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks_ = static_cast<char*>(memory);
  }
  Crew(const Crew&) = delete;
  ~Crew() {
    std::for_each(fibers_.begin(), fibers_.end(), destroy);
    munmap(stacks_, kBytes);
  }

  void enlarge(unsigned threads) {
    while (fibers_.size() < threads) {
      fibers_.push_back({nullptr, stacks_ + fibers_.size() * kStackBytes, kStackBytes});
      create(fibers_.back());
    }
  }

  // Blocks `first`, `first + step` and so on of a launch.
  void run(const Launch& launch, unsigned first, unsigned step) {
    // Once for all blocks: for each block anew, copying 32 KiB for each thread would take longer than what it does.
    for (unsigned t = 0; t < launch.threads; ++t) std::memcpy(top(launch, t), launch.argument, launch.argument_bytes);
    const ThreadStorage storage(&block);
    for (uint64_t number = first; number < launch.blocks; number += step) {
      // The OS thread is the launch's own: nothing but kernels and this file uses its thread_local variables.
      std::memset(storage.begin, 0xff, storage.bytes);
      launched = &launch;
      run_block(launch, unsigned(number));
      if (std::memcmp(top(launch, 0), launch.argument, launch.argument_bytes))
        fail("a kernel has written to its parameter: declare it const");
    }
  }

 private:
  static constexpr size_t kBytes = kMaxThreads * kStackBytes;

  char* top(const Launch& launch, unsigned t) const {
    return stacks_ + (t + 1) * kStackBytes - (launch.argument_bytes + 15) / 16 * 16;
  }

  void run_block(const Launch& launch, unsigned number) {
    Warp warps[kMaxThreads / kLanes];
    for (unsigned t = 0; t < launch.threads; ++t) fibers_[t].stack_pointer = first_frame(launch, t);
    Block b{launch.threads, fibers_.data(), warps};
    block = &b;
    blockIdx = {number};
    blockDim = {launch.threads};
    gridDim = {launch.blocks};
    release(&b.begun);
    switch_to(b, b.fiber[0]);
    acquire(&b.ended);
  }

  // As if swap_stacks had left the fiber at the begin of thread_main.
  Frame* first_frame(const Launch& launch, unsigned t) const {
    const auto address = [](auto function) { return reinterpret_cast<void*>(function); };
    Frame frame{};
    frame.r12 = address(begin_thread);
    frame.rbx = address(launch.call);
    frame.r13 = address(end_thread);
    frame.resume = address(thread_main);
    return new (top(launch, t) - sizeof frame) Frame(frame);
  }

  std::vector<Fiber> fibers_;
  char* stacks_;
};

// Kept by the thread that launches: ThreadSanitizer takes 0.2 ms to create a fiber and as long to destroy it.
inline Crew& crew(unsigned number, unsigned threads) {
  static thread_local std::vector<std::unique_ptr<Crew>> kept;
  while (kept.size() <= number) kept.push_back(std::make_unique<Crew>());
  kept[number]->enlarge(threads);
  return *kept[number];
}

inline unsigned wanted_threads() {
  const char* wanted = std::getenv("CUDA_ON_CPU_THREADS");
  return wanted ? std::max(1, std::atoi(wanted)) : 2;
}

inline void run(const Launch& launch) {
  if (launch.blocks == 0 || launch.threads == 0 || launch.threads > kMaxThreads) {
    noted(cudaErrorInvalidConfiguration);
    return;
  }
  if (launch.threads % kLanes) fail("blocks are of whole warps only: launch a multiple of 32 threads");
  const unsigned count = std::min(wanted_threads(), launch.blocks);
  std::vector<std::thread> pool;
  for (unsigned i = 0; i < count; ++i)
    pool.emplace_back([&launch, i, count, &mine = crew(i, launch.threads)] { mine.run(launch, i, count); });
  for (std::thread& thread : pool) thread.join();
}

}  // namespace cuda_on_cpu

namespace mtadam::cuda {

// Runs kernel(argument); as a launch on a device, but done when it returns.
template <class Argument>
void launch(void (*kernel)(Argument), unsigned blocks, unsigned threads, cudaStream_t /*stream*/,
            const Argument& argument) {
  static_assert(std::is_trivially_copyable_v<Argument> && alignof(Argument) <= 16,
                "what is passed by value, bit by bit");
  static_assert(sizeof(Argument) <= cuda_on_cpu::kArgumentBytes, "CUDA takes no larger arguments");
  const auto untyped = reinterpret_cast<void (*)()>(kernel);
  const auto call = sizeof(Argument) > 16 ? untyped : cuda_on_cpu::call_with_registers<Argument>;
  cuda_on_cpu::run({untyped, call, &argument, sizeof argument, blocks, threads});
}

}  // namespace mtadam::cuda
