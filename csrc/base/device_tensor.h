// Tensors in device memory: what dtype.h does on the CPU, and the sums and divisions of a
// reduction. The same bits as there. Asynchronous on `stream` (a cudaStream_t), which may be
// capturing a graph; no allocation, one kernel each. Spans and views are of device memory, elements
// aligned to their size (faster: 16 bytes). Throw cuda.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace fedcomm::cuda {

void load_floats(const TensorView& tensor, std::size_t begin, std::span<float> out, void* stream);

/// values / divisor to the tensor, rounded to its dtype. Also looks for values that the dtype
/// cannot hold: where it finds one, *lowest (on the device; null: do not look) becomes the lowest
/// element of the tensor, or what it was if that is lower.
void store_floats(std::span<const float> values, float divisor, const TensorView& tensor,
                  std::size_t begin, std::uint64_t* lowest, void* stream);

enum class Sum : std::uint8_t { start, go_on };

/// sum += weight * the tensor's elements from `begin` on, product and sum rounded each; or, to
/// start, sum = weight * elements, whatever was there.
void accumulate(const TensorView& tensor, std::size_t begin, float weight, std::span<float> sum,
                Sum how, void* stream);

void divide(std::span<float> x, float divisor, void* stream);

void fill_zero(std::span<float> x, void* stream);

/// *lowest (on the device) becomes the index of the first value whose magnitude has a bit pattern
/// of at least `limit`, unless there is none or it is lower already.
void first_beyond(std::span<const float> x, std::uint32_t limit, std::uint64_t* lowest,
                  void* stream);

}  // namespace fedcomm::cuda
