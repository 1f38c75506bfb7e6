#include <algorithm>
#include <stdexcept>
#include <string>

#include "device.cuh"

namespace mtadam::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Not back again when done: that would make a context also on a device that has none.
void make_current(int device) {
  int current = 0;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (device != current) check(cudaSetDevice(device), "cudaSetDevice");
}

int64_t addresses_of_row(int64_t terms, bool wants_combined) { return terms + (wants_combined ? 1 : 0); }

int64_t chunks_of(const Row& row, int64_t elements) {
  return std::max<int64_t>(1, (row.numel + elements - 1) / elements);
}

// The flags of a row of `step`.
template <class C>
int64_t flags_of(const Step<C>& step, int64_t r) {
  const Row& row = step.row[r];
  int64_t grads = 0, others = row.param | row.exp_avg | step.combined[r];
  for (int64_t k = 0; k < step.terms; ++k) grads |= step.grad[k * step.rows + r];
  for (int64_t k = 0; k < step.moments; ++k) others |= step.second[k * step.rows + r] | step.maximum[k * step.rows + r];
  const bool aligned = (grads | others) % kVectorBytes == 0;
  return (grads ? kReached : 0) | (step.grad_type[r] != row.param_type ? kWide : 0) | (aligned ? kAligned : 0);
}

// The argument for rows [first, first + count) of `step`.
template <class S, class C>
void fill(S& slice, const Step<C>& step, const Device<C>& device, int64_t first, int64_t count, int64_t first_chunk) {
  slice.terms = step.terms;
  slice.moments = step.moments;
  slice.first = first;
  slice.count = count;
  slice.rows = step.rows;
  slice.first_chunk = first_chunk;
  slice.chunks = device.chunks;
  slice.row = device.row;
  slice.group = device.group;
  slice.weight = device.weight;
  slice.second = device.second;
  slice.maximum = device.maximum;
  slice.chunk_start = device.chunk_start;
  slice.chunk = device.chunk;
  slice.partial = device.partial;
  slice.factors = device.factors;
  slice.order = device.order;
  slice.queue = device.queue;
  slice.steps = step.count;
  slice.norm = step.norm;
  slice.running = step.running;
  slice.scale = step.scale;
  slice.gram = step.gram;
  slice.wants_combined = device.wants_combined;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t r = first + i;
    for (int64_t k = 0; k < step.terms; ++k) slice.address[k * count + i] = step.grad[k * step.rows + r];
    slice.address[i] |= flags_of(step, r);
    if (device.wants_combined) slice.address[step.terms * count + i] = step.combined[r];
  }
}

template <class S>
void launch_stages(const S& slice, int64_t chunks, unsigned stages, cudaStream_t stream) {
  if (stages & kTermNorms) term_norms(slice, chunks, stream);
  if (stages & kFoldNorms) fold_norms(slice, chunks, stream);
  if (stages & kBalance) balance(slice, chunks, stream);
  if (stages & kMtadamUpdate) mtadam_update(slice, chunks, stream);
  if (stages & kMtadamStep) mtadam_step(slice, chunks, stream);
  if (stages & kTermGram) term_gram(slice, chunks, stream);
  if (stages & kCombinedAdam) combined_adam(slice, chunks, stream);
}

// The stages for rows [first, first + count), whose chunks are from first_chunk on, in an argument of so many
// addresses. Returns the number of the chunks.
template <int64_t kAddresses, class C>
int64_t run_rows(const Step<C>& step, const Device<C>& device, unsigned stages, int64_t first, int64_t count,
                 int64_t first_chunk) {
  static thread_local Slice<C, kAddresses> slice;  // too large for the stack of a small thread
  fill(slice, step, device, first, count, first_chunk);
  int64_t chunks = 0;
  for (int64_t r = first; r < first + count; ++r) chunks += chunks_of(step.row[r], device.chunk_elements);
  launch_stages(slice, chunks, stages, static_cast<cudaStream_t>(device.stream));
  check(cudaGetLastError(), "launching the CUDA kernels");
  return chunks;
}

}  // namespace

int64_t rows_at_once(int64_t terms, bool wants_combined) {
  return kMaxAddresses / addresses_of_row(terms, wants_combined);
}

template <class C>
void run(const Step<C>& step, const Device<C>& device, unsigned stages) {
  if (step.terms >= kMaxAddresses)
    throw std::invalid_argument("the CUDA kernels take at most " + std::to_string(kMaxAddresses - 1) + " terms");
  make_current(device.index);
  const int64_t at_once = rows_at_once(step.terms, device.wants_combined);
  const int64_t per_row = addresses_of_row(step.terms, device.wants_combined);
  int64_t chunk = 0;
  for (int64_t first = 0; first < step.rows;) {
    const int64_t count = std::min(step.rows - first, at_once);
    const auto run = count * per_row <= kFewAddresses ? run_rows<kFewAddresses, C> : run_rows<kMaxAddresses, C>;
    chunk += run(step, device, stages, first, count, chunk);
    first += count;
  }
}

template void run(const Step<double>&, const Device<double>&, unsigned);
template void run(const Step<float>&, const Device<float>&, unsigned);

}  // namespace mtadam::cuda
