// Groups with tensors on a GPU, as far as Python cannot reach: sealed and masked payloads, and
// payloads that only the device finds out to be wrong. The rest is in tests/test_cuda_group.py.
#ifdef FEDCOMM_HAS_CUDA

#include <thread>
#include <vector>

#include "collective/group.h"
#include "device.h"
#include "fabrics.h"
#include "stages.h"

namespace fedcomm {
namespace {

using testing::DeviceArray;

/// Changes payloads on their way in, behind their first `begin` bytes.
class Damage final : public PayloadMask {
 public:
  explicit Damage(std::size_t begin) : begin_(begin) {}
  void outgoing(const FrameHeader&, std::span<std::byte>) const override {}
  void incoming(const FrameHeader& header, std::span<std::byte> payload) const override {
    if (header.operation != Operation::all_reduce) return;  // the handshake is left alone
    for (auto& each : payload.subspan(std::min(begin_, payload.size())))
      each = std::byte{0xff};
  }

 private:
  std::size_t begin_;
};

struct Result {
  std::vector<float> sum;
  std::optional<Error> error;
};

/// all_reduce of two members, on the device or on the CPU.
std::vector<Result> reduce(const GroupOptions& group_options, const ReduceOptions& options,
                           std::size_t n, int device) {
  auto groups = Group::open_all(testing::memory_fabrics(2), group_options);
  std::vector<Result> results(2);
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      std::vector<float> x(n);
      for (std::size_t i = 0; i < n; ++i)
        x[i] = static_cast<float>((i * 2654435761u + rank * 40503u) % 20011) - 10000.0f;
      try {
        if (device == kHost) {
          const TensorView view{x.data(), n, DType::f32};
          groups[rank]->all_reduce(view, view, options)->wait();
          results[rank].sum = x;
        } else {
          const DeviceArray<float> there{std::span<const float>(x)};
          const TensorView view{there.data(), n, DType::f32, device};
          groups[rank]->all_reduce(view, view, options)->wait();
          results[rank].sum = there.get();
        }
      } catch (const Error& error) {
        results[rank].error = error;
      }
    });
  }
  for (auto& thread : threads)
    thread.join();
  return results;
}

GroupOptions small_segments() {
  GroupOptions options;
  options.segment_elems = 2 * kGrain;
  return options;
}

}  // namespace

TEST(cuda_group_with_sealed_and_masked_payloads) {
  testing::need_device();
  for (const char* codec : {"fp32", "int8", "topk(0.05, int8)", "chunk_topk(256, 16)"}) {
    for (const bool sealed : {false, true}) {
      for (const bool masked : {false, true}) {
        GroupOptions options = small_segments();
        if (sealed) options.sealer = std::make_shared<testing::FlippingSealer>();
        if (masked) options.mask = std::make_shared<testing::KeyedMask>();
        ReduceOptions how;
        how.codec = codec;
        const auto truth = reduce(options, how, 100'001, kHost);
        const auto results = reduce(options, how, 100'001, 0);
        for (std::size_t rank = 0; rank < 2; ++rank) {
          CHECK(!results[rank].error);
          CHECK(results[rank].sum == truth[rank].sum);
        }
      }
    }
  }
}

TEST(cuda_group_tells_what_is_wrong_with_a_payload) {
  testing::need_device();
  // The count of entries is looked at on the host, indices on the device.
  for (const std::size_t begin : {std::size_t{0}, std::size_t{4}}) {
    for (const char* index : {"topk(0.05, int8)", "topk(0.05, int8, index=packed)"}) {
      GroupOptions options = small_segments();
      options.mask = std::make_shared<Damage>(begin);
      ReduceOptions how;
      how.codec = index;
      const auto truth = reduce(options, how, 100'001, kHost);
      const auto results = reduce(options, how, 100'001, 0);
      for (std::size_t rank = 0; rank < 2; ++rank) {
        CHECK(truth[rank].error.has_value());
        CHECK(results[rank].error.has_value());
        // Damaged indices that can be read leave damaged values, which are no numbers.
        CHECK(results[rank].error->kind() == truth[rank].error->kind());
      }
    }
  }
}

TEST(cuda_group_refuses_tensors_in_different_memories) {
  testing::need_device();
  auto groups = Group::open_all(testing::memory_fabrics(1), {});
  std::vector<float> x(10);
  const DeviceArray<float> there{std::span<const float>(x)};
  CHECK_THROWS(ErrorKind::invalid_argument,
               groups[0]->all_reduce({x.data(), 10}, {there.data(), 10, DType::f32, 0}, {}));
}

}  // namespace fedcomm

#endif  // FEDCOMM_HAS_CUDA
