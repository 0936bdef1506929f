// Slow, scalar checks of what kernels computed, each on one thread and from the definitions in the
// headers. Of the timed code they use only a format's own word on what a code is worth
// (dequantize()); they unpack bits, search neighbours and compare by themselves. Each returns what
// is wrong, or "".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coding/coding.h"
#include "quant/quant.h"

namespace fedcomm::bench {

/// Elements of a payload, one after the other.
std::vector<float> slow_decode(const QuantSpec& spec, std::span<const std::byte> payload,
                               std::size_t n_elems);

/// x + beta * before, each rounded; x itself where `before` is empty.
std::vector<float> slow_sum(std::span<const float> x, std::span<const float> before, float beta);

/// Of the encoding of `sum`: each step is right to rounding; each element got the nearest code
/// (within the rounding of a division), or, where stochastic, one of the two around it, without
/// bias on the whole; and after == sum - decoded, to the bit, unless `after` is empty.
std::string check_encoding(const QuantSpec& spec, std::span<const float> sum,
                           std::span<const std::byte> payload, std::span<const float> after);

/// Bit patterns are equal.
std::string check_same(std::span<const float> expected, std::span<const float> found);

/// Indices ascend strictly, values are theirs, and no other entry precedes the last of them in the
/// order (magnitude, then lower index): so they are the largest. tests compare this with
/// std::nth_element. `first_index` is that of sum[0].
std::string check_largest(std::span<const float> sum, std::span<const std::uint32_t> indices,
                          std::span<const float> values, std::size_t first_index = 0);

/// The same for each chunk.
std::string check_chunks(std::span<const float> sum, std::size_t chunk, std::size_t k_per_chunk,
                         std::span<const std::uint32_t> indices, std::span<const float> values);

std::vector<std::uint32_t> slow_rice_decode(std::span<const std::byte> bytes, std::uint64_t n,
                                            std::size_t k);
std::vector<std::uint32_t> slow_packed_decode(std::span<const std::byte> bytes,
                                              const Chunking& chunking);

std::string check_indices(std::span<const std::uint32_t> expected,
                          std::span<const std::uint32_t> found);

}  // namespace fedcomm::bench
