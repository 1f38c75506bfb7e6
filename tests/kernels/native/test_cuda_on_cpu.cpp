// Tests of cuda_on_cpu.h, with kernels of their own.
//
//   test_cuda_on_cpu        runs all tests
//   test_cuda_on_cpu FAULT  runs one kernel that has a fault; their names are in kFaults

#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "cuda_on_cpu.h"

namespace {

using mtadam::cuda::launch;

constexpr unsigned kThreads = 256;
constexpr unsigned kMask = 0xffffffff;

int failures = 0;

void check(bool holds, const char* condition, int line) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "test_cuda_on_cpu.cpp:%d: failed: %s\n", line, condition);
}
#define CHECK(condition) check((condition), #condition, __LINE__)

// ---------------------------------------------------------------------------------------------------------------------
// Sums: shuffles, shared memory, templates
// ---------------------------------------------------------------------------------------------------------------------

template <class C>
struct Sums {
  const C* x;  // [numel]
  C* sum;      // [blocks]
  int64_t numel;
};

template <class C>
__device__ __forceinline__ C warp_sum(C value) {
  for (unsigned delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(kMask, value, delta);
  return value;
}

template <class C>
__global__ void __launch_bounds__(kThreads) block_sums(const __grid_constant__ Sums<C> argument) {
  __shared__ C of_warp[kThreads / 32];
  C sum = 0;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < argument.numel; i += stride)
    sum += __ldg(argument.x + i);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = warp_sum(threadIdx.x < kThreads / 32 ? of_warp[threadIdx.x] : C(0));
  if (threadIdx.x == 0) argument.sum[blockIdx.x] = sum;
}

template <class C>
void test_block_sums() {
  std::vector<C> x(10007), sum(5, C(-1));
  for (size_t i = 0; i < x.size(); ++i) x[i] = C(i % 1000);  // sums in any order are exact: integers below 2^24
  launch(block_sums<C>, 5, kThreads, nullptr, {x.data(), sum.data(), int64_t(x.size())});
  CHECK(std::accumulate(sum.begin(), sum.end(), 0.0) == std::accumulate(x.begin(), x.end(), 0.0));
}

struct Shuffled {
  const double* x;  // [32]
  double* down;     // [31, 32], of doubles and of floats
  double* xored;    // [31, 32]
};

__global__ void shuffle_all(const __grid_constant__ Shuffled argument) {
  const double x = argument.x[threadIdx.x];
  for (unsigned by = 1; by < 32; ++by) {
    const unsigned at = (by - 1) * 32 + threadIdx.x;
    argument.down[at] = by % 2 ? __shfl_down_sync(kMask, x, by) : __shfl_down_sync(kMask, float(x), by);
    argument.xored[at] = by % 2 ? __shfl_xor_sync(kMask, x, int(by)) : __shfl_xor_sync(kMask, float(x), int(by));
  }
}

void test_shuffles() {
  std::vector<double> x(32), down(31 * 32), xored(31 * 32);
  std::iota(x.begin(), x.end(), 100.0);
  launch(shuffle_all, 1, 32, nullptr, {x.data(), down.data(), xored.data()});
  for (unsigned by = 1; by < 32; ++by) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      CHECK(down[(by - 1) * 32 + lane] == x[lane + by < 32 ? lane + by : lane]);
      CHECK(xored[(by - 1) * 32 + lane] == x[lane ^ by]);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Barriers, blocks, shared memory
// ---------------------------------------------------------------------------------------------------------------------

struct Rotated {
  int rounds;
  int* out;  // [blocks, threads]
  int* shared_before;
};

// Hands numbers round a ring of threads, with both barriers that each round needs.
__global__ void rotate(const __grid_constant__ Rotated argument) {
  __shared__ int ring[kThreads];
  __shared__ int rounds;
  if (threadIdx.x == 0) {
    argument.shared_before[blockIdx.x] = rounds;
    rounds = argument.rounds;
  }
  ring[threadIdx.x] = int(blockIdx.x * blockDim.x + threadIdx.x);
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    const int next = ring[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
    ring[threadIdx.x] = next;
    __syncthreads();
  }
  argument.out[blockIdx.x * blockDim.x + threadIdx.x] = ring[threadIdx.x];
}

void test_barriers() {
  constexpr unsigned kBlocks = 7, kRounds = 37;
  std::vector<int> out(kBlocks * kThreads), shared_before(kBlocks);
  launch(rotate, kBlocks, kThreads, nullptr, {kRounds, out.data(), shared_before.data()});
  for (unsigned i = 0; i < out.size(); ++i)
    CHECK(unsigned(out[i]) == i / kThreads * kThreads + (i + kRounds) % kThreads);
  for (const int before : shared_before) CHECK(before == -1);  // and not what the block before has left
}

struct Ordered {
  int* order;  // [blocks, threads]
};

__global__ void number_threads(const __grid_constant__ Ordered argument) {
  argument.order[blockIdx.x * blockDim.x + threadIdx.x] += int(gridDim.x + blockIdx.x * 1000 + threadIdx.x);
}

void test_many_blocks() {
  constexpr unsigned kBlocks = 1001, kFew = 32;
  std::vector<int> order(kBlocks * kFew);
  launch(number_threads, kBlocks, kFew, nullptr, Ordered{order.data()});
  for (unsigned i = 0; i < order.size(); ++i) CHECK(unsigned(order[i]) == kBlocks + i / kFew * 1000 + i % kFew);
}

// ---------------------------------------------------------------------------------------------------------------------
// Arguments, intrinsics, errors
// ---------------------------------------------------------------------------------------------------------------------

struct Largest {
  int64_t number[4094];
  int64_t* sum;
};
static_assert(sizeof(Largest) > 32752 && sizeof(Largest) <= cuda_on_cpu::kArgumentBytes);

__device__ int64_t number_at(const Largest& argument, unsigned i) { return argument.number[i]; }

__global__ void sum_argument(const __grid_constant__ Largest argument) {
  int64_t sum = 0;
  for (unsigned i = threadIdx.x; i < 4094; i += blockDim.x) sum += number_at(argument, i);
  argument.sum[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

void test_largest_argument() {
  std::vector<int64_t> sum(3 * kThreads);
  Largest argument{{}, sum.data()};
  std::iota(std::begin(argument.number), std::end(argument.number), 0);
  launch(sum_argument, 3, kThreads, nullptr, argument);
  CHECK(std::accumulate(sum.begin(), sum.end(), int64_t(0)) == 3 * int64_t(4094) * 4093 / 2);
}

static_assert(alignof(int2) == 8 && alignof(int4) == 16 && sizeof(int2) == 8 && sizeof(int4) == 16);

void test_bits() {
  CHECK(__float_as_uint(1.0f) == 0x3f800000 && __uint_as_float(0x3f800000) == 1.0f);
  CHECK(__float_as_uint(__uint_as_float(0x7fc12345)) == 0x7fc12345);
}

void test_errors() {
  int device = -1;
  CHECK(cudaSetDevice(0) == cudaSuccess && cudaGetDevice(&device) == cudaSuccess && device == 0);
  CHECK(cudaGetLastError() == cudaSuccess);
  launch(number_threads, 0, kThreads, nullptr, Ordered{});
  CHECK(!std::strcmp(cudaGetErrorString(cudaGetLastError()), "invalid configuration argument"));
  launch(number_threads, 1, 2048, nullptr, Ordered{});
  CHECK(cudaGetLastError() != cudaSuccess);
  CHECK(cudaSetDevice(1) != cudaSuccess && cudaGetLastError() != cudaSuccess && cudaGetLastError() == cudaSuccess);
}

// ---------------------------------------------------------------------------------------------------------------------
// Negative controls: kernels with a fault each, which the run must end in a report of
// ---------------------------------------------------------------------------------------------------------------------

struct Faulty {
  int* out;  // [threads]
};

__global__ void no_fault(const __grid_constant__ Faulty argument) {
  __shared__ int ring[64];
  ring[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  argument.out[threadIdx.x] = ring[(threadIdx.x + 1) % 64];
}

__global__ void missing_barrier(const __grid_constant__ Faulty argument) {
  __shared__ int ring[64];
  ring[threadIdx.x] = int(threadIdx.x);
  argument.out[threadIdx.x] = ring[(threadIdx.x + 1) % 64];
}

// As no_fault, but the ring is written again while others may still read it.
__global__ void missing_second_barrier(const __grid_constant__ Faulty argument) {
  __shared__ int ring[64];
  ring[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  argument.out[threadIdx.x] = ring[(threadIdx.x + 1) % 64];
  ring[threadIdx.x] = 0;
  __syncthreads();
}

__global__ void shuffle_for_barrier(const __grid_constant__ Faulty argument) {
  __shared__ int ring[64];
  ring[threadIdx.x] = int(threadIdx.x);
  const float other = __shfl_xor_sync(kMask, 1.0f, 1);
  argument.out[threadIdx.x] = ring[threadIdx.x ^ 1] + int(other);
}

__global__ void race_of_blocks(const __grid_constant__ Faulty argument) {
  if (threadIdx.x == 0) argument.out[0] = int(blockIdx.x);
}

__global__ void out_of_bounds(const __grid_constant__ Faulty argument) {
  argument.out[threadIdx.x + 1] = int(threadIdx.x);
}

__global__ void out_of_shared(const __grid_constant__ Faulty argument) {
  __shared__ int ring[64];
  ring[threadIdx.x + 1] = int(threadIdx.x);
  __syncthreads();
  argument.out[threadIdx.x] = ring[threadIdx.x];
}

__global__ void barrier_after_exit(const __grid_constant__ Faulty) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void barrier_against_shuffle(const __grid_constant__ Faulty argument) {
  if (threadIdx.x >= 32)
    __syncthreads();
  else if (threadIdx.x > 0)
    argument.out[threadIdx.x] = int(__shfl_xor_sync(kMask, 1.0f, 1));
}

__global__ void lane_missing(const __grid_constant__ Faulty argument) {
  if (threadIdx.x != 40) argument.out[threadIdx.x] = int(__shfl_xor_sync(kMask, 1.0f, 1));
}

const std::map<std::string, void (*)(Faulty)> kFaults = {
    {"none", no_fault},
    {"missing-barrier", missing_barrier},
    {"missing-second-barrier", missing_second_barrier},
    {"shuffle-for-barrier", shuffle_for_barrier},
    {"race-of-blocks", race_of_blocks},
    {"out-of-bounds", out_of_bounds},
    {"out-of-shared", out_of_shared},
    {"barrier-after-exit", barrier_after_exit},
    {"barrier-against-shuffle", barrier_against_shuffle},
    {"lane-missing", lane_missing},
};

void run_fault(const std::string& name) {
  std::vector<int> out(64);
  const unsigned blocks = name == "race-of-blocks" ? 2 : 1;
  launch(kFaults.at(name), blocks, 64, nullptr, Faulty{out.data()});
  std::puts("survived");
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2) {
    run_fault(arguments[1]);
    return 0;
  }
  test_block_sums<float>();
  test_block_sums<double>();
  test_shuffles();
  test_barriers();
  test_many_blocks();
  test_largest_argument();
  test_bits();
  test_errors();
  return failures != 0;
}
