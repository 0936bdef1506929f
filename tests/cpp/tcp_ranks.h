// Groups over TCP whose streams tests can count and disturb.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "check.h"
#include "collective/group.h"
#include "fabrics.h"

namespace fedcomm::testing {

struct TcpRanks {
  std::vector<std::shared_ptr<TcpFabric>> fabrics;
  std::vector<std::shared_ptr<Group>> groups;

  TcpRanks(int n, int streams, double timeout_s = 20)
      : fabrics(tcp_fabrics(n, on_loopback(streams))) {
    GroupOptions options;
    options.timeout_s = timeout_s;
    groups = Group::open_all({fabrics.begin(), fabrics.end()}, options);
    // Streams are made in the background: wait for all of them.
    for (const auto& fabric : fabrics) {
      for (int peer = 0; peer < n; ++peer) {
        if (peer == fabric->rank()) continue;
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
        while (fabric->link_stats(peer).streams < streams &&
               std::chrono::steady_clock::now() < deadline)
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        CHECK_EQUAL(fabric->link_stats(peer).streams, streams);
      }
    }
  }

  std::vector<std::optional<Error>> all_reduce(std::size_t n_elems) {
    std::vector<std::vector<float>> values;
    std::vector<std::shared_ptr<Work>> works;
    std::vector<std::optional<Error>> errors(groups.size());
    for (std::size_t rank = 0; rank < groups.size(); ++rank) {
      values.emplace_back(n_elems);
      for (std::size_t i = 0; i < n_elems; ++i)
        values.back()[i] = static_cast<float>((i + rank) % 1000);
    }
    std::vector<float> sum(n_elems, 0.0f);
    for (const auto& each : values) {
      for (std::size_t i = 0; i < n_elems; ++i)
        sum[i] += each[i];
    }
    works.resize(groups.size());
    for (std::size_t rank = 0; rank < groups.size(); ++rank) {
      const TensorView view{values[rank].data(), n_elems, DType::f32};
      try {
        works[rank] = groups[rank]->all_reduce(view, view, {});
      } catch (const Error& error) {
        errors[rank] = error;
      }
    }
    for (std::size_t rank = 0; rank < groups.size(); ++rank) {
      try {
        if (works[rank]) works[rank]->wait();
        if (works[rank]) CHECK(values[rank] == sum);
      } catch (const Error& error) {
        errors[rank] = error;
      }
    }
    return errors;
  }
  void all_reduce_exactly(std::size_t n_elems) {
    for (const auto& error : all_reduce(n_elems)) {
      if (error) throw Failure(error->what());
    }
  }
};

}  // namespace fedcomm::testing
