#include <algorithm>
#include <stdexcept>
#include <string>

#include "device.cuh"

namespace mtadam::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Does not restore the device when done: that would make a context on a device that has none.
void make_current(int device) {
  int current = 0;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (device != current) check(cudaSetDevice(device), "cudaSetDevice");
}

int64_t addresses_of_row(int64_t terms, bool wants_combined) { return terms + (wants_combined ? 1 : 0); }

int64_t chunks_of(const Row& row, int64_t elements) {
  return std::max<int64_t>(1, (row.numel + elements - 1) / elements);
}

// Returns the flags of a row.
template <class C>
int64_t flags_of(const StepArgs<C>& host, int64_t r) {
  const Row& row = host.row[r];
  int64_t grads = 0, others = row.param | row.exp_avg | host.combined[r];
  for (int64_t k = 0; k < host.terms; ++k) grads |= host.grad[k * host.rows + r];
  for (int64_t k = 0; k < host.moments; ++k)
    others |= host.exp_avg_sq[k * host.rows + r] | host.max_exp_avg_sq[k * host.rows + r];
  const bool aligned = (grads | others) % kVectorBytes == 0;
  return (grads ? kHasGrad : 0) | (host.grad_type[r] != row.param_type ? kWide : 0) | (aligned ? kAligned : 0);
}

// Fills the argument for rows [first, first + count), whose chunks are from first_chunk on.
template <class S, class C>
void fill(S& args, const StepArgs<C>& host, const DeviceArgs<C>& device, int64_t first, int64_t count,
          int64_t first_chunk) {
  static_cast<DeviceArgs<C>&>(args) = device;
  args.first = first;
  args.count = count;
  args.first_chunk = first_chunk;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t r = first + i;
    for (int64_t k = 0; k < host.terms; ++k) args.address[k * count + i] = host.grad[k * host.rows + r];
    args.address[i] |= flags_of(host, r);
    if (device.wants_combined) args.address[host.terms * count + i] = host.combined[r];
  }
}

template <class S>
void launch_stages(const S& args, int64_t chunks, unsigned stages, cudaStream_t stream) {
  if (stages & kTermNorms) term_norms(args, chunks, stream);
  if (stages & kFoldNorms) fold_norms(args, chunks, stream);
  if (stages & kBalance) balance(args, chunks, stream);
  if (stages & kMtadamUpdate) mtadam_update(args, chunks, stream);
  if (stages & kMtadamStep) mtadam_step(args, chunks, stream);
  if (stages & kTermGram) term_gram(args, chunks, stream);
  if (stages & kBeginStep) begin_step(args, chunks, stream);
  if (stages & kCombinedAdam) combined_adam(args, chunks, stream);
}

// Runs the stages for rows [first, first + count), whose chunks are from first_chunk on, with an argument of so many
// addresses. Returns the number of the chunks.
template <int64_t kAddresses, class C>
int64_t run_rows(const StepArgs<C>& host, const DeviceArgs<C>& device, unsigned stages, int64_t first, int64_t count,
                 int64_t first_chunk) {
  static thread_local KernelArgs<C, kAddresses> args;  // too large for the stack of a small thread
  fill(args, host, device, first, count, first_chunk);
  int64_t chunks = 0;
  for (int64_t r = first; r < first + count; ++r) chunks += chunks_of(host.row[r], device.chunk_elements);
  launch_stages(args, chunks, stages, static_cast<cudaStream_t>(device.stream));
  check(cudaGetLastError(), "launching the CUDA kernels");
  return chunks;
}

// Compiled like all others, so it loads where they do.
__global__ void probe_kernel() {}

}  // namespace

std::string find_problem(int device) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaGetLastError();  // so that no later call reports it
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

int64_t rows_at_once(int64_t terms, bool wants_combined) {
  return kMaxAddresses / addresses_of_row(terms, wants_combined);
}

template <class C>
void run(const StepArgs<C>& host, const DeviceArgs<C>& device, unsigned stages) {
  if (host.terms >= kMaxAddresses)
    throw std::invalid_argument("the CUDA kernels take at most " + std::to_string(kMaxAddresses - 1) + " terms");
  make_current(int(device.index));
  const int64_t at_once = rows_at_once(host.terms, device.wants_combined);
  const int64_t per_row = addresses_of_row(host.terms, device.wants_combined);
  int64_t chunk = 0;
  for (int64_t first = 0; first < host.rows;) {
    const int64_t count = std::min(host.rows - first, at_once);
    const auto run = count * per_row <= kFewAddresses ? run_rows<kFewAddresses, C> : run_rows<kMaxAddresses, C>;
    chunk += run(host, device, stages, first, count, chunk);
    first += count;
  }
}

template void run(const StepArgs<double>&, const DeviceArgs<double>&, unsigned);
template void run(const StepArgs<float>&, const DeviceArgs<float>&, unsigned);

template <class Args>
void run_rule(const Args& args, int device, void* stream) {
  make_current(device);
  launch_rule(args, static_cast<cudaStream_t>(stream));
  check(cudaGetLastError(), "launching a rule's kernel");
}

template void run_rule(const PCGradArgs&, int, void*);
template void run_rule(const EigenArgs&, int, void*);
template void run_rule(const MinNormArgs&, int, void*);

}  // namespace mtadam::cuda
