// Numbers to test with, and a hash of the results.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>

// splitmix64: passes for random from any seed, however regular the seeds are. The same on every machine.
class Random {
 public:
  Random(std::initializer_list<int64_t> seed) {
    for (const int64_t part : seed) state_ = next() ^ uint64_t(part);
  }

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t x = state_;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }

  int64_t below(int64_t n) { return int64_t(next() % uint64_t(n)); }
  double between(double low, double high) { return low + (high - low) * double(next() >> 11) * 0x1p-53; }

 private:
  uint64_t state_ = 0;
};

// The same for the same bytes within one build, no further.
class Hash {
 public:
  void add(const void* data, int64_t bytes) {
    const std::string_view all(static_cast<const char*>(data), size_t(bytes));
    value_ = value_ * 0x9e3779b97f4a7c15u + std::hash<std::string_view>()(all);
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0;
};
