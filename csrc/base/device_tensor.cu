// The element-wise kernels of device_tensor.h: a thread takes chunks of four consecutive elements,
// and loads all of them before it stores the first.
#include "base/cuda.cuh"
#include "base/device_tensor.h"
#include "base/error.h"

namespace fedcomm::cuda {
namespace {

constexpr unsigned kThreads = 256, kChunk = 4, kChunks = 4;
constexpr unsigned kTile = kThreads * kChunk * kChunks;

// Elements as they lie in memory.
struct Float {
  float value;
  __device__ __forceinline__ float get() const { return value; }
  __device__ __forceinline__ void set(float x) { value = x; }
};
struct Half {
  std::uint16_t bits;
  __device__ __forceinline__ float get() const { return half_to_float(bits); }
  __device__ __forceinline__ void set(float x) { bits = float_to_half(x); }
};
struct BrainHalf {
  std::uint16_t bits;
  __device__ __forceinline__ float get() const { return bf16_to_float(bits); }
  __device__ __forceinline__ void set(float x) { bits = float_to_bf16(x); }
};

template <typename T>
struct alignas(kChunk * sizeof(T)) Four {
  T at[kChunk];
};

template <typename T>
bool holds_fours(const T* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % alignof(Four<T>) == 0;
}

/// `count` elements from `from` on; zero for the others.
template <typename T>
__device__ __forceinline__ void load(const T* from, unsigned count, bool fours,
                                     float (&values)[kChunk]) {
  if (fours && count == kChunk) {
    const auto four = *reinterpret_cast<const Four<T>*>(from);
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j)
      values[j] = four.at[j].get();
  } else {
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j)
      values[j] = j < count ? from[j].get() : 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ void store(T* to, unsigned count, bool fours,
                                      const float (&values)[kChunk]) {
  Four<T> four;
#pragma unroll
  for (unsigned j = 0; j < kChunk; ++j)
    four.at[j].set(values[j]);
  if (fours && count == kChunk) {
    *reinterpret_cast<Four<T>*>(to) = four;
  } else {
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j)
      if (j < count) to[j] = four.at[j];
  }
}

// What is done with an element. kReads: it is told what stands in the output.
struct Copy {
  static constexpr bool kReads = false;
  __device__ __forceinline__ float operator()(float x, float) const { return x; }
};
struct Scale {
  static constexpr bool kReads = false;
  float weight;
  __device__ __forceinline__ float operator()(float x, float) const { return weight * x; }
};
struct AddScaled {
  static constexpr bool kReads = true;
  float weight;
  __device__ __forceinline__ float operator()(float x, float sum) const { return sum + weight * x; }
};
struct Divide {
  static constexpr bool kReads = false;
  float divisor;
  __device__ __forceinline__ float operator()(float x, float) const { return x / divisor; }
};

/// Results of a magnitude of at least `limit` are looked for where `lowest` is not null; `first` is
/// the index of element 0.
struct Watch {
  std::uint64_t* lowest = nullptr;
  std::uint64_t first = 0;
  std::uint32_t limit = 0;
};

/// `to` may be null, where there is nothing but to watch.
template <typename From, typename To, typename Map>
struct MapArgs {
  const From* from;
  To* to;
  std::size_t n;
  Map map;
  Watch watch;
  bool from_fours, to_fours;
};

__device__ __forceinline__ void look(const Watch& watch, std::size_t at, unsigned count,
                                     const float (&values)[kChunk]) {
  std::uint32_t largest = 0;
#pragma unroll
  for (unsigned j = 0; j < kChunk; ++j)
    largest = max(largest, float_bits(values[j]) & 0x7fffffffu);
  if (largest < watch.limit) return;
  for (unsigned j = 0; j < count; ++j) {
    if ((float_bits(values[j]) & 0x7fffffffu) < watch.limit) continue;
    atomicMin(reinterpret_cast<unsigned long long*>(watch.lowest),
              static_cast<unsigned long long>(watch.first + at + j));
    return;
  }
}

template <typename From, typename To, typename Map>
__global__ void __launch_bounds__(kThreads)
    map_kernel(const __grid_constant__ MapArgs<From, To, Map> args) {
  const std::size_t first = std::size_t{blockIdx.x} * kTile + threadIdx.x * kChunk;
  float values[kChunks][kChunk];
  float there[kChunks][kChunk] = {};
  unsigned count[kChunks];
#pragma unroll
  for (unsigned k = 0; k < kChunks; ++k) {
    const std::size_t at = first + k * kThreads * kChunk;
    count[k] = at < args.n ? static_cast<unsigned>(min(args.n - at, std::size_t{kChunk})) : 0;
    load(args.from + at, count[k], args.from_fours, values[k]);
    if constexpr (Map::kReads) load(args.to + at, count[k], args.to_fours, there[k]);
  }
#pragma unroll
  for (unsigned k = 0; k < kChunks; ++k) {
    const std::size_t at = first + k * kThreads * kChunk;
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j)
      values[k][j] = args.map(values[k][j], there[k][j]);
    if (args.watch.lowest != nullptr) look(args.watch, at, count[k], values[k]);
    if (args.to == nullptr) continue;
    store(args.to + at, count[k], args.to_fours, values[k]);
  }
}

template <typename From, typename To, typename Map>
void launch(const From* from, To* to, std::size_t n, const Map& map, const Watch& watch,
            void* stream) {
  if (n == 0) return;
  const MapArgs<From, To, Map> args{from, to, n, map, watch, holds_fours(from), holds_fours(to)};
  const auto grid = static_cast<unsigned>((n + kTile - 1) / kTile);
  map_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  check_launch("element-wise kernel");
}

/// Calls f with a pointer to the tensor's elements, from `begin` on.
template <typename F>
void visit_elements(const TensorView& tensor, std::size_t begin, const F& f) {
  std::byte* bytes = tensor.bytes() + begin * size_of(tensor.dtype);
  switch (tensor.dtype) {
    case DType::f32: return f(reinterpret_cast<Float*>(bytes));
    case DType::f16: return f(reinterpret_cast<Half*>(bytes));
    case DType::bf16: return f(reinterpret_cast<BrainHalf*>(bytes));
    case DType::u8: return;  // raw bytes never reach arithmetic; Group rejects them
  }
}

const Float* elements(std::span<const float> x) {
  return reinterpret_cast<const Float*>(x.data());
}
Float* elements(std::span<float> x) {
  return reinterpret_cast<Float*>(x.data());
}

}  // namespace

void load_floats(const TensorView& tensor, std::size_t begin, std::span<float> out, void* stream) {
  visit_elements(tensor, begin, [&]<typename T>(const T* from) {
    launch(from, elements(out), out.size(), Copy{}, {}, stream);
  });
}

void store_floats(std::span<const float> values, float divisor, const TensorView& tensor,
                  std::size_t begin, std::uint64_t* lowest, void* stream) {
  const Watch watch{lowest, begin, overflow_bits(tensor.dtype)};
  visit_elements(tensor, begin, [&]<typename T>(T* to) {
    if (divisor == 1.0f) return launch(elements(values), to, values.size(), Copy{}, watch, stream);
    launch(elements(values), to, values.size(), Divide{divisor}, watch, stream);
  });
}

void accumulate(const TensorView& tensor, std::size_t begin, float weight, std::span<float> sum,
                Sum how, void* stream) {
  visit_elements(tensor, begin, [&]<typename T>(const T* from) {
    switch (how) {
      case Sum::start: return launch(from, elements(sum), sum.size(), Scale{weight}, {}, stream);
      case Sum::go_on:
        return launch(from, elements(sum), sum.size(), AddScaled{weight}, {}, stream);
    }
  });
}

void divide(std::span<float> x, float divisor, void* stream) {
  launch(elements(std::span<const float>(x)), elements(x), x.size(), Divide{divisor}, {}, stream);
}

void fill_zero(std::span<float> x, void* stream) {
  if (x.empty()) return;
  check(cudaMemsetAsync(x.data(), 0, x.size_bytes(), static_cast<cudaStream_t>(stream)),
        "fill_zero");
}

void first_beyond(std::span<const float> x, std::uint32_t limit, std::uint64_t* lowest,
                  void* stream) {
  launch(elements(x), static_cast<Float*>(nullptr), x.size(), Copy{}, {lowest, 0, limit}, stream);
}

}  // namespace fedcomm::cuda
