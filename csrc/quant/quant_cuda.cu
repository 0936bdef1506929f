// The formats as CUDA kernels: a warp takes a block of a scaled format, a thread an element of an
// unscaled one. Same bytes as quant_cpu.cpp: the same functions of formats/*.h, compiled without
// fused multiply-add.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "quant/quant.h"

namespace fedcomm::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarp = 32;
constexpr unsigned kMaxGrid = 132 * 16;  // enough to fill any current device; kernels stride
constexpr std::uint32_t kMagnitude = 0x7fffffffu;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    fail(ErrorKind::cuda, std::string("[cuda] ") + what + ": " + cudaGetErrorString(status));
  }
}

unsigned grid_for(std::size_t n_threads) {
  const std::size_t blocks = (n_threads + kThreads - 1) / kThreads;
  return static_cast<unsigned>(std::clamp<std::size_t>(blocks, 1, kMaxGrid));
}

template <typename F>
__device__ const typename F::Code* codes_of(const std::byte* payload, std::size_t n_blocks) {
  return reinterpret_cast<const typename F::Code*>(payload + n_blocks * sizeof(float));
}

template <typename F>
__global__ void encode_scaled_kernel(const float* __restrict__ x, std::size_t n_elems,
                                     std::byte* __restrict__ payload,
                                     std::int32_t* __restrict__ non_finite) {
  constexpr unsigned kPerLane = F::kBlock / kWarp;
  const std::size_t n_blocks = (n_elems + F::kBlock - 1) / F::kBlock;
  auto* scales = reinterpret_cast<float*>(payload);
  auto* codes = const_cast<typename F::Code*>(codes_of<F>(payload, n_blocks));
  const unsigned lane = threadIdx.x % kWarp;
  const std::size_t n_warps = static_cast<std::size_t>(gridDim.x) * (kThreads / kWarp);
  std::size_t block =
      static_cast<std::size_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  for (; block < n_blocks; block += n_warps) {
    float values[kPerLane];
    std::uint32_t largest = 0;
#pragma unroll
    for (unsigned k = 0; k < kPerLane; ++k) {
      const std::size_t i = block * F::kBlock + k * kWarp + lane;
      values[k] = i < n_elems ? x[i] : 0.0f;
      largest = max(largest, float_bits(values[k]) & kMagnitude);
    }
    largest = __reduce_max_sync(0xffffffffu, largest);
    const bool finite = largest < F::kOverflow;
    const float scale = finite ? F::scale(bits_float(largest)) : bits_float(0x7fc00000u);
    const float inverse = finite ? 1.0f / scale : 0.0f;
    if (lane == 0) {
      scales[block] = scale;
      if (!finite) *non_finite = 1;
    }
#pragma unroll
    for (unsigned k = 0; k < kPerLane; ++k) {
      const std::size_t i = block * F::kBlock + k * kWarp + lane;
      if (i < n_elems) codes[i] = finite ? F::quantize(values[k], inverse) : typename F::Code{0};
    }
  }
}

template <typename F>
__global__ void encode_plain_kernel(const float* __restrict__ x, std::size_t n_elems,
                                    std::byte* __restrict__ payload,
                                    std::int32_t* __restrict__ non_finite) {
  auto* codes = reinterpret_cast<typename F::Code*>(payload);
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < n_elems; i += stride) {
    if ((float_bits(x[i]) & kMagnitude) >= F::kOverflow) *non_finite = 1;
    codes[i] = F::quantize(x[i]);
  }
}

template <typename F>
__device__ float decode_one(const std::byte* payload, std::size_t n_elems, std::size_t i) {
  if constexpr (F::kScaled) {
    const std::size_t n_blocks = (n_elems + F::kBlock - 1) / F::kBlock;
    const auto* scales = reinterpret_cast<const float*>(payload);
    return F::dequantize(codes_of<F>(payload, n_blocks)[i], scales[i / F::kBlock]);
  } else {
    return F::dequantize(codes_of<F>(payload, 0)[i]);
  }
}

template <typename F>
__global__ void decode_kernel(const std::byte* __restrict__ payload, std::size_t n_elems,
                              float* __restrict__ out) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < n_elems; i += stride)
    out[i] = decode_one<F>(payload, n_elems, i);
}

template <typename F>
__global__ void decode_add_kernel(const std::byte* __restrict__ payload, std::size_t n_elems,
                                  float weight, float* __restrict__ accumulator) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < n_elems; i += stride)
    accumulator[i] += weight * decode_one<F>(payload, n_elems, i);
}

}  // namespace

bool available() {
  return true;
}

void encode(Format format, const float* x, std::size_t n_elems, std::byte* payload,
            std::int32_t* non_finite, void* stream) {
  if (n_elems == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  visit_format(format, [&]<typename F>(F) {
    if constexpr (F::kScaled) {
      const std::size_t n_blocks = (n_elems + F::kBlock - 1) / F::kBlock;
      encode_scaled_kernel<F>
          <<<grid_for(n_blocks * kWarp), kThreads, 0, s>>>(x, n_elems, payload, non_finite);
    } else {
      encode_plain_kernel<F>
          <<<grid_for(n_elems), kThreads, 0, s>>>(x, n_elems, payload, non_finite);
    }
  });
  check(cudaGetLastError(), "encode");
}

void decode(Format format, const std::byte* payload, std::size_t n_elems, float* out,
            void* stream) {
  if (n_elems == 0) return;
  visit_format(format, [&]<typename F>(F) {
    decode_kernel<F><<<grid_for(n_elems), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        payload, n_elems, out);
  });
  check(cudaGetLastError(), "decode");
}

void decode_add(Format format, const std::byte* payload, std::size_t n_elems, float weight,
                float* accumulator, void* stream) {
  if (n_elems == 0) return;
  visit_format(format, [&]<typename F>(F) {
    decode_add_kernel<F><<<grid_for(n_elems), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        payload, n_elems, weight, accumulator);
  });
  check(cudaGetLastError(), "decode_add");
}

}  // namespace fedcomm::cuda
