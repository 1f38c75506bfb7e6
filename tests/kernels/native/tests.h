// The groups of tests, a file each.
#pragma once

#include <cstdint>

// 16-bit numbers to float and back: every one, alone and through the loops.
void test_conversions();

// Steps against the oracle, for double and float; returns a hash of all results.
template <class C>
uint64_t test_steps();

// CombinedAdam's kernels, with negative controls of their own; returns a hash of all results.
template <class C>
uint64_t test_combined();

// Negative controls: the comparison with the oracle sees mistakes; for double and float.
template <class C>
void test_faults();
