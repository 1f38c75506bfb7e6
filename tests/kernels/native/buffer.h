// Memory that the kernels read and write.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "../../csrc/launch.h"
#include "formats.h"

// Where a buffer lies, so that an access outside it does not go unseen.
enum class Placement {
  kHeap,         // an allocation of its exact size: AddressSanitizer sees one byte too far
  kUnaligned,    // the same behind one element, so that vectors of 16 bytes are not aligned
  kBeforeGuard,  // ends at a page that cannot be accessed: sees vector code too, which AddressSanitizer's build lacks
  kAfterGuard,   // begins behind such a page
};

// Bytes, zero at first.
class Buffer {
 public:
  Buffer(int64_t bytes, int64_t element, Placement placement)
      : bytes_(bytes), element_(element), placement_(placement) {
    placement == Placement::kHeap || placement == Placement::kUnaligned ? allocate() : map();
    std::memset(data_, 0, bytes_);
  }
  Buffer(const Buffer& other) : Buffer(other.bytes_, other.element_, other.placement_) {
    std::memcpy(data_, other.data_, bytes_);
  }
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool operator==(const Buffer& other) const {
    return bytes_ == other.bytes_ && !std::memcmp(data_, other.data_, bytes_);
  }

 private:
  void allocate() {
    const int64_t lead = placement_ == Placement::kUnaligned ? element_ : 0;
    memory_.reset(new char[lead + bytes_], std::default_delete<char[]>());
    data_ = memory_.get() + lead;
  }

  void map() {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t usable = (bytes_ + page - 1) / page * page;
    const int64_t mapped = usable + 2 * page;
    void* memory = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_.reset(static_cast<char*>(memory), [mapped](char* all) { munmap(all, mapped); });
    char* const first = memory_.get() + page;
    if (usable && mprotect(first, usable, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
    data_ = placement_ == Placement::kBeforeGuard ? first + usable - bytes_ : first;
  }

  std::shared_ptr<char> memory_;  // never shared; unlike unique_ptr it needs no type for each way to release
  char* data_ = nullptr;
  int64_t bytes_, element_;
  Placement placement_;
};

template <class T>
T read(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void write(char* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

constexpr int64_t kElementBytes[mtadam::kStorageTypes] = {8, 4, 2, 2};

// Numbers of one storage type.
class Tensor {
 public:
  Tensor(int64_t type, int64_t numel, Placement placement)
      : type_(type), numel_(numel), buffer_(numel * kElementBytes[type], kElementBytes[type], placement) {}

  int64_t type() const { return type_; }
  int64_t numel() const { return numel_; }
  int64_t address() const { return reinterpret_cast<int64_t>(buffer_.data()); }
  const Buffer& buffer() const { return buffer_; }
  bool operator==(const Tensor& other) const { return buffer_ == other.buffer_; }

  double operator[](int64_t i) const {
    switch (type_) {
      case mtadam::kFloat64:
        return read<double>(at(i));
      case mtadam::kFloat32:
        return read<float>(at(i));
      default:
        return oracle::decode(format(), bits(i));
    }
  }

  void set(int64_t i, double value) {
    switch (type_) {
      case mtadam::kFloat64:
        return write(at(i), value);
      case mtadam::kFloat32:
        return write(at(i), float(value));
      default:
        return set_bits(i, oracle::encode(format(), value));
    }
  }

  // Of 16-bit storage.
  uint16_t bits(int64_t i) const { return read<uint16_t>(at(i)); }
  void set_bits(int64_t i, uint16_t bits) { write(at(i), bits); }

 private:
  char* at(int64_t i) const { return buffer_.data() + i * kElementBytes[type_]; }
  oracle::Format format() const { return type_ == mtadam::kFloat16 ? oracle::kHalf : oracle::kBrain; }

  int64_t type_, numel_;
  Buffer buffer_;
};
