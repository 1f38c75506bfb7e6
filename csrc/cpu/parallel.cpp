#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace mtadam::cpu {
namespace {

using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, detail::Part part, void* body);
using TorchGetNumThreads = int32_t (*)(uint32_t* threads);
using GompParallel = void (*)(void (*part)(void*), void* team, unsigned threads, unsigned flags);
using GetInt = int (*)();

// The thread pool of torch, found in what `import torch` has loaded; this module is linked to none of it. torch 2.10
// and newer export the pool as a C function. Before that, the pool is the OpenMP runtime that libtorch_cpu is linked
// to, under any name that the wheel gave it. A second OpenMP runtime in one process would slow both by a factor of 100.
struct Threads {
  TorchParallelFor torch = nullptr;
  TorchGetNumThreads torch_threads = nullptr;
  GompParallel openmp = nullptr;
  GetInt thread = nullptr, threads = nullptr, nested = nullptr, most = nullptr;

  Threads() {
    const char* wanted = std::getenv("MTADAM_FUSED_THREADS");  // torch, openmp or serial: for tests and for debugging
    const auto allowed = [&](const char* name) { return !wanted || !std::strcmp(wanted, name); };
    void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
    if (!library) return;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    if (allowed("torch") && find(torch_threads, "torch_get_num_threads") && find(torch, "torch_parallel_for")) return;
    if (!allowed("openmp") || !find(thread, "omp_get_thread_num") || !find(threads, "omp_get_num_threads") ||
        !find(nested, "omp_in_parallel") || !find(most, "omp_get_max_threads") || !find(openmp, "GOMP_parallel"))
      openmp = nullptr;
  }
};

const Threads& pool() {
  static const Threads threads;
  return threads;
}

struct Team {
  int64_t n, grain;
  detail::Part part;
  void* body;
};

void openmp_part(void* argument) {
  const Team& team = *static_cast<Team*>(argument);
  const int64_t threads = pool().threads(), thread = pool().thread();
  const int64_t share = (team.n + threads - 1) / threads;
  const int64_t begin = thread * share, end = std::min(team.n, begin + share);
  if (begin < end) team.part(begin, end, team.body);
}

}  // namespace

const char* threading() { return pool().torch ? "torch" : pool().openmp ? "openmp" : "serial"; }

int64_t threads() {
  uint32_t count = 1;
  if (pool().torch)
    pool().torch_threads(&count);
  else if (pool().openmp)
    count = uint32_t(pool().most());
  return count;
}

void detail::run(int64_t n, int64_t grain, Part part, void* body) {
  const Threads& threads = pool();
  if (n <= 0) return;
  if (n <= grain) {
    part(0, n, body);
  } else if (threads.torch) {
    threads.torch(0, n, grain, part, body);
  } else if (threads.openmp && !threads.nested()) {
    Team team{n, grain, part, body};
    const int64_t useful = (n + grain - 1) / grain;
    threads.openmp(openmp_part, &team, unsigned(std::min<int64_t>(threads.most(), useful)), 0);
  } else {
    part(0, n, body);
  }
}

}  // namespace mtadam::cpu
