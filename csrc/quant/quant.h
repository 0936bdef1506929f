// Encoding and decoding flat float32 tensors in one number format, on the CPU and on a GPU.
//
// A payload of n elements: for a scaled format, one float32 scale for each block of kBlock elements
// (the last block may be short), then one code an element; for an unscaled one, the codes alone.
// cpu:: and cuda:: produce the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "quant/registry.h"

namespace fedcomm {

/// Elements that share a scale; 1 where nothing is shared.
std::size_t format_block(Format format);

/// Exact size of the payload of `n_elems` elements.
std::size_t format_bytes(Format format, std::size_t n_elems);

namespace cpu {

/// Index of the first NaN, infinity or value beyond the format's range, or x.size().
std::size_t first_non_finite(Format format, std::span<const float> x);

/// Returns false if first_non_finite() would find something; the payload then decodes to NaN or
/// infinity in each block (or element, for an unscaled format) that held one.
bool encode(Format format, std::span<const float> x, std::span<std::byte> payload);
void decode(Format format, std::span<const std::byte> payload, std::span<float> out);
/// accumulator += weight * decoded, each product and sum rounded on its own.
void decode_add(Format format, std::span<const std::byte> payload, float weight,
                std::span<float> accumulator);

}  // namespace cpu

namespace cuda {

/// Whether this build has CUDA kernels.
bool available();

/// As in cpu::, on device memory, asynchronous on `stream` (a cudaStream_t). `non_finite` is an
/// int32 on the device that is set to 1 where cpu::encode returns false, and left alone otherwise.
void encode(Format format, const float* x, std::size_t n_elems, std::byte* payload,
            std::int32_t* non_finite, void* stream);
void decode(Format format, const std::byte* payload, std::size_t n_elems, float* out, void* stream);
void decode_add(Format format, const std::byte* payload, std::size_t n_elems, float weight,
                float* accumulator, void* stream);

}  // namespace cuda
}  // namespace fedcomm
