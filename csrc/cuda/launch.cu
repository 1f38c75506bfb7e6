#include <stdexcept>
#include <string>
#include <vector>

#include "device.cuh"

namespace mtadam::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes a device current for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(previous_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_ = 0;
};

int64_t chunks_of(const Row& row) { return (row.numel + kChunk - 1) / kChunk; }

// The slice of `step` from row `first` on, of as many rows as the kernels' argument has addresses for.
template <class C>
void fill(Slice<C>& slice, const Step<C>& step, const Device<C>& device, int64_t first) {
  const int64_t per_row = step.terms + (device.wants_combined ? 1 : 0);
  const int64_t most = kMaxAddresses / per_row;
  slice.terms = step.terms;
  slice.first = first;
  slice.count = step.rows - first < most ? step.rows - first : most;
  slice.rows = step.rows;
  slice.row = device.row;
  slice.group = device.group;
  slice.weight = device.weight;
  slice.second = device.second;
  slice.maximum = device.maximum;
  slice.chunk_start = device.chunk_start;
  slice.partial = device.partial;
  slice.factors = device.factors;
  slice.steps = step.count;
  slice.norm = step.norm;
  slice.running = step.running;
  slice.scale = step.scale;
  slice.wants_combined = device.wants_combined;
  for (int64_t i = 0; i < slice.count; ++i) {
    const int64_t r = first + i;
    const int64_t wide = step.grad_type[r] != step.row[r].param_type ? kWide : 0;
    for (int64_t k = 0; k < step.terms; ++k) {
      const int64_t grad = step.grad[k * step.rows + r];
      slice.address[k * slice.count + i] = grad ? grad | wide : 0;
    }
    if (device.wants_combined) slice.address[step.terms * slice.count + i] = step.combined[r];
  }
}

template <class C>
void launch_slice(const Slice<C>& slice, const Row* rows, unsigned stages, cudaStream_t stream) {
  int64_t chunks = 0;
  for (int64_t r = slice.first; r < slice.first + slice.count; ++r) chunks += chunks_of(rows[r]);
  if (chunks && stages & kTermNorms) term_norms(slice, unsigned(chunks), stream);
  if (stages & kBalance) balance(slice, unsigned(slice.count), stream);
  if (chunks && stages & kMtadamUpdate) mtadam_update(slice, unsigned(chunks), stream);
  check(cudaGetLastError(), "launching MTAdam's kernels");
}

}  // namespace

template <class C>
void run(const Step<C>& step, const Device<C>& device, unsigned stages) {
  if (step.terms > kMaxAddresses - 1)
    throw std::invalid_argument("the CUDA kernels take at most " + std::to_string(kMaxAddresses - 1) + " terms");
  const OnDevice scope(device.index);
  static thread_local Slice<C> slice;  // too large for the stack of a small thread
  for (int64_t first = 0; first < step.rows; first += slice.count) {
    fill(slice, step, device, first);
    launch_slice(slice, step.row, stages, static_cast<cudaStream_t>(device.stream));
  }
}

template void run(const Step<double>&, const Device<double>&, unsigned);
template void run(const Step<float>&, const Device<float>&, unsigned);

}  // namespace mtadam::cuda
