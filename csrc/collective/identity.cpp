#include "collective/identity.h"

#include "base/dtype.h"
#include "codec/codec.h"

namespace fedcomm {
namespace {

const char* dtype_text(std::uint8_t dtype) {
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::u8: return "bytes";
  }
  return "?";
}

std::string codec_text(std::uint32_t id) {
  if (id == 0) return "plain bytes";
  for (const std::string& name : codec_names()) {
    if (make_codec(name)->id() == id) return name;
  }
  return "unknown codec " + std::to_string(id);
}

}  // namespace

const char* name_of(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::direct: return "direct";
    case Algorithm::ring: return "ring";
    case Algorithm::all_gather: return "all_gather";
    case Algorithm::sparse: return "sparse";
  }
  return "?";
}

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::all_reduce: return "all_reduce";
    case Operation::all_gather: return "all_gather";
    case Operation::broadcast: return "broadcast";
    case Operation::probe: return "probe";
  }
  return "?";
}

bool same_call(const FrameHeader& there, const FrameHeader& here) {
  return there.operation == here.operation && there.codec == here.codec &&
         there.n_elems == here.n_elems && there.reduce == here.reduce &&
         there.algorithm == here.algorithm && there.round == here.round &&
         there.bucket == here.bucket && there.sequence == here.sequence &&
         there.dtype == here.dtype;
}

std::string differences(const FrameHeader& there, const FrameHeader& here, const std::string& me) {
  std::string theirs, ours;
  const auto compare = [&](const std::string& a, const std::string& b) {
    if (a == b) return;
    theirs += (theirs.empty() ? "" : ", ") + a;
    ours += (ours.empty() ? "" : ", ") + b;
  };
  const auto number = [](const char* name, std::uint64_t value) {
    return std::string(name) + " " + std::to_string(value);
  };
  const auto size = [](const FrameHeader& h) {
    return std::to_string(h.n_elems) + (h.codec == 0 ? " bytes" : " elements");
  };
  const auto reduction = [](const FrameHeader& h) {
    return std::string("op ") + (h.reduce == ReduceOp::mean ? "mean" : "sum");
  };
  compare(name_of(there.operation), name_of(here.operation));
  compare(size(there), size(here));
  compare("codec " + codec_text(there.codec), "codec " + codec_text(here.codec));
  compare(reduction(there), reduction(here));
  compare(std::string("dtype ") + dtype_text(there.dtype),
          std::string("dtype ") + dtype_text(here.dtype));
  compare(std::string("algorithm ") + name_of(there.algorithm),
          std::string("algorithm ") + name_of(here.algorithm));
  compare(number("round", there.round), number("round", here.round));
  compare(number("bucket", there.bucket), number("bucket", here.bucket));
  compare(number("operation", there.sequence), number("operation", here.sequence));
  return "it has " + theirs + ", " + me + " has " + ours;
}

}  // namespace fedcomm
