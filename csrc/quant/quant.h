// Encoding and decoding flat float32 tensors in one number format, on the CPU and on a GPU.
//
// A payload of n elements: for a scaled format, one step (fp32 or bf16) for each block of elements
// (the last block may be short), then the codes, kBits each, packed from the low bits of a byte up;
// for an unscaled one, the codes alone. All little-endian. Unused bits of the last byte are zero.
// cpu:: and cuda:: produce the same bytes, with whatever instruction set and number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "quant/philox.h"
#include "quant/registry.h"
#include "quant/scale.h"

namespace fedcomm {

enum class Rounding : std::uint8_t { nearest, stochastic };

inline constexpr std::uint32_t kMinBlock = 32, kMaxBlock = 4096;

/// A format with its choices.
struct QuantSpec {
  Format format = Format::Fp32;
  std::uint32_t block = 1;  // elements that share a step, a power of two; 1 if unscaled
  ScaleType scale = ScaleType::fp32;
  Rounding rounding = Rounding::nearest;

  bool operator==(const QuantSpec&) const = default;
};

/// The format with its usual block and scale, rounding to nearest.
QuantSpec default_spec(Format format);

/// Throws invalid_argument where block or rounding do not go with the format.
void check_spec(const QuantSpec& spec);

const char* format_name(Format format);

/// Exact size of the payload of `n_elems` elements.
std::size_t quant_bytes(const QuantSpec& spec, std::size_t n_elems);

/// Error feedback of one encoding: acc = x + beta * before, product and sum rounded each;
/// after = acc - decode(encode(acc)). Both spans are empty (no feedback) or as long as x; they may
/// be the same memory. Where an encoder fails, `after` holds nothing of use.
struct Feedback {
  std::span<const float> before;
  std::span<float> after;
  float beta = 1.0f;
};

namespace cpu {

/// Index of the first NaN, infinity or value beyond the format's range, or x.size().
std::size_t first_non_finite(Format format, std::span<const float> x);

/// One pass over memory. Returns false if first_non_finite() would find something in x or in the
/// accumulated sum; the payload then decodes to NaN or infinity in each block (or element, for an
/// unscaled format) that held one. `draw` matters to stochastic rounding only.
bool encode(const QuantSpec& spec, std::span<const float> x, const Feedback& feedback,
            const Draw& draw, std::span<std::byte> payload);
/// Throws corrupt_frame where the payload's size is not that of out.size() elements.
void decode(const QuantSpec& spec, std::span<const std::byte> payload, std::span<float> out);
/// accumulator += weight * decoded, each product and sum rounded on its own.
void decode_add(const QuantSpec& spec, std::span<const std::byte> payload, float weight,
                std::span<float> accumulator);
/// accumulator = 0 + weight * decoded: decode_add() to zeros (so -0 becomes +0), in one pass.
void decode_first(const QuantSpec& spec, std::span<const std::byte> payload, float weight,
                  std::span<float> accumulator);

}  // namespace cpu

namespace cuda {

/// Whether this build has CUDA kernels.
bool available();

/// What to encode, in device memory: x, and the feedback's parts, null or as long as x.
struct Input {
  const float* x = nullptr;
  std::size_t n_elems = 0;
  const float* before = nullptr;
  float* after = nullptr;
  float beta = 1.0f;
};

/// As in cpu::, on device memory, asynchronous on `stream` (a cudaStream_t), which may be capturing
/// a graph. Payloads and floats are aligned to 4 bytes (faster: 16). `non_finite` is an int32 on
/// the device that is set to 1 where cpu::encode returns false, and left alone otherwise. The same
/// bits as in cpu::, but for those of a NaN that arithmetic has made: they are the machine's own.
void encode(const QuantSpec& spec, const Input& input, const Draw& draw, std::byte* payload,
            std::int32_t* non_finite, void* stream);
void decode(const QuantSpec& spec, const std::byte* payload, std::size_t n_elems, float* out,
            void* stream);
void decode_add(const QuantSpec& spec, const std::byte* payload, std::size_t n_elems, float weight,
                float* accumulator, void* stream);

/// Entries chosen from a tensor, by ascending index: values[i] is what was chosen at indices[i].
struct Entries {
  const float* values = nullptr;
  const std::uint32_t* indices = nullptr;
  std::size_t n = 0;
  /// If not null: only those from range[0] to the one before range[1] (at most n), two numbers that
  /// the device alone knows.
  const std::uint32_t* range = nullptr;
};

/// What an encoding of entries writes.
struct EntriesOutput {
  std::byte* payload;                // their number (uint32), and the payload of their values
  std::uint64_t* n_bytes = nullptr;  // if not null: set to the size of both
  /// If not null: after[indices[i]] is set to values[i] less what it decodes to, or to zero where
  /// that is not finite.
  float* after = nullptr;
};

/// As encode(), with entry i of the range as element i. One kernel.
void encode_entries(const QuantSpec& spec, const Entries& entries, const Draw& draw,
                    const EntriesOutput& out, std::int32_t* non_finite, void* stream);

/// Sets *n_bytes, on the device, as encode_entries() would: for who cannot wait for that.
void measure_entries(const QuantSpec& spec, const Entries& entries, std::uint64_t* n_bytes,
                     void* stream);

/// Where decoded entries go. Where *corrupt is not 0, indices may be anything and nothing is done.
struct EntriesTarget {
  std::span<const std::uint32_t> indices;  // of so many; no two are the same
  float* out;
  const std::int32_t* corrupt;
};

/// Of values[i], which `payload` is of: out[indices[i]] = values[i].
void decode_entries(const QuantSpec& spec, const std::byte* payload, const EntriesTarget& target,
                    void* stream);
/// out[indices[i]] += weight * values[i], product and sum rounded each.
void decode_add_entries(const QuantSpec& spec, const std::byte* payload, float weight,
                        const EntriesTarget& target, void* stream);

}  // namespace cuda
}  // namespace fedcomm
