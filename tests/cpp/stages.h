// Stand-ins for what comes between codec and transport: sealing and masking.
#pragma once

#include "wire/frame.h"

namespace fedcomm::testing {

/// A sealer that changes the payload, as encryption will.
class FlippingSealer final : public FrameSealer {
 public:
  std::uint8_t id() const override { return 200; }
  std::size_t overhead_bytes() const override { return 16; }
  bool changes_payload() const override { return true; }
  void seal(std::span<std::byte> frame) const override {
    for (auto& each : frame.subspan(kHeaderBytes))
      each = ~each;
  }
  void open(std::span<const std::byte> frame, std::span<std::byte> plain) const override {
    for (std::size_t i = 0; i < plain.size(); ++i)
      plain[i] = ~frame[kHeaderBytes + i];
  }
};

/// A mask keyed by what identifies the payload.
class KeyedMask final : public PayloadMask {
 public:
  void outgoing(const FrameHeader& header, std::span<std::byte> payload) const override {
    const auto key = static_cast<std::byte>(header.segment * 7 + header.source + 1);
    for (auto& each : payload)
      each ^= key;
  }
  void incoming(const FrameHeader& header, std::span<std::byte> payload) const override {
    outgoing(header, payload);
  }
};

}  // namespace fedcomm::testing
