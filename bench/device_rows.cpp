// Rows of codecs and of index coding on a GPU, verified against those of the CPU.
#include "device_rows.h"

#include <algorithm>
#include <cstring>

#include "coding/coding.h"
#include "topk/topk.h"

namespace fedcomm::bench {
namespace {

constexpr float kWeight = 0.5f, kBeta = 0.95f;

bool same(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// A codec and its payload of the arena's input.
struct Coding {
  Coding(DeviceArena& of, const std::string& name)
      : arena(of), codec(make_codec(name)), device(codec->on_device()) {}

  std::span<std::byte> room() { return arena.payload.take(codec->wire_bytes(arena.n())); }
  void encode(bool feedback, cudaStream_t stream) {
    EncodeOptions options;
    if (feedback) options.feedback = {arena.residual, arena.residual};
    Flags* flags = arena.flags();
    const DeviceOutput out{room(), flags->n_bytes, &flags->non_finite};
    known = device->encode(arena.x, options, out, stream);
  }
  std::size_t n_bytes() { return known.value_or(arena.flags_on_host().n_bytes[0]); }
  std::vector<std::byte> payload_on_host() { return to_host(room().first(n_bytes())); }
  /// For decoders: what the host has seen of it stays in `head`.
  DevicePayload ready() {
    encode(false, arena.stream.get());
    arena.stream.wait();
    size = n_bytes();
    head = to_host(room().first(std::min(size, DevicePayload::kHeadBytes)));
    return payload();
  }
  DevicePayload payload() { return {room().first(size), head}; }

  DeviceArena& arena;
  std::shared_ptr<const Codec> codec;
  std::unique_ptr<DeviceCodec> device;
  std::optional<std::size_t> known;
  std::size_t size = 0;
  std::vector<std::byte> head;
};

DeviceRow encode_row(DeviceArena& arena, const std::string& name, bool feedback) {
  const auto coding = std::make_shared<Coding>(arena, name);
  DeviceRow row;
  row.kernel = feedback ? "encode+feedback" : "encode";
  row.codec = coding->codec->name();
  row.run = [coding, feedback](cudaStream_t stream) { coding->encode(feedback, stream); };
  row.prepare = [&arena, coding, feedback] {
    coding->device->reserve_encode(arena.n());
    arena.fresh_residual();
    coding->encode(feedback, arena.stream.get());
    arena.stream.wait();
    return Traffic{
        .n = arena.n(), .n_read = 1, .in_place = feedback, .code_bytes_written = coding->n_bytes()};
  };
  row.verify = [&arena, coding, feedback]() -> std::string {
    arena.fresh_residual();
    coding->encode(feedback, arena.stream.get());
    arena.stream.wait();
    std::vector<float> residual(arena.host_residual.begin(), arena.host_residual.end());
    std::vector<std::byte> expected(coding->codec->wire_bytes(arena.n()));
    EncodeOptions options;
    if (feedback) options.feedback = {residual, residual};
    expected.resize(coding->codec->encode(arena.host.x, options, expected));
    if (coding->payload_on_host() != expected) return "not the payload of the CPU";
    if (feedback && !same(to_host(arena.residual), residual)) return "not the CPU's residual";
    return arena.flags_on_host().non_finite == 0 ? "" : "taken for not finite";
  };
  return row;
}

/// The bytes that decoding a sparse payload moves are those of its entries, and, but for sums, of
/// all the elements that are set.
DeviceRow decode_row(DeviceArena& arena, const std::string& name, bool sparse, bool add) {
  const auto coding = std::make_shared<Coding>(arena, name);
  DeviceRow row;
  row.kernel = add ? "decode_add" : "decode";
  row.codec = coding->codec->name();
  row.prepare = [&arena, coding, sparse, add] {
    coding->device->reserve_encode(arena.n());
    coding->device->reserve_decode(arena.n(), arena.n());
    arena.fresh_residual();
    arena.decoded.take(arena.n());
    const DevicePayload payload = coding->ready();
    std::size_t n = arena.n();
    if (sparse && add) {
      std::uint32_t k = 0;
      std::memcpy(&k, payload.head.data(), sizeof k);
      n = k;
    }
    return Traffic{
        .n = n, .in_place = add, .written = !add, .code_bytes_read = payload.bytes.size()};
  };
  row.run = [&arena, coding, add](cudaStream_t stream) {
    std::int32_t* corrupt = &arena.flags()->corrupt;
    if (add) {
      coding->device->decode_add(coding->payload(), kWeight, arena.residual, corrupt, stream);
    } else {
      coding->device->decode(coding->payload(), arena.decoded.take(arena.n()), corrupt, stream);
    }
  };
  row.verify = [&arena, coding, add, run = row.run]() -> std::string {
    arena.fresh_residual();
    coding->ready();
    run(arena.stream.get());
    arena.stream.wait();
    const std::vector<std::byte> payload = coding->payload_on_host();
    std::vector<float> expected(arena.n());
    if (add) {
      std::ranges::copy(arena.host_residual, expected.begin());
      coding->codec->decode_add(payload, kWeight, expected);
    } else {
      coding->codec->decode(payload, expected);
    }
    if (arena.flags_on_host().corrupt != 0) return "taken for corrupt";
    const auto out = add ? arena.residual : arena.decoded.take(arena.n());
    return same(to_host(out), expected) ? "" : "not what the CPU decodes";
  };
  return row;
}

/// The selection alone, chunk by chunk, with the new residual not yet less what is sent.
DeviceRow chunk_row(DeviceArena& arena, std::size_t chunk, std::size_t k_per_chunk) {
  const cuda::TopKChunks chunks{chunk, k_per_chunk};
  DeviceRow row;
  row.kernel = "chunk_top_k+feedback";
  row.codec = std::to_string(k_per_chunk) + " of " + std::to_string(chunk);
  row.n_entries = chunk_top_k_count(arena.n(), chunk, k_per_chunk);
  const auto output = [&arena, n = row.n_entries] {
    return TopKOutput{arena.indices.take(n), arena.values.take(n)};
  };
  row.prepare = [&arena, output, n = row.n_entries] {
    arena.fresh_residual();
    output();
    return Traffic{.n = arena.n(),
                   .n_read = 1,
                   .in_place = true,
                   .code_bytes_written = n * (sizeof(std::uint32_t) + sizeof(float))};
  };
  row.run = [&arena, chunks, output](cudaStream_t stream) {
    const TopKInput input{arena.x, arena.residual, arena.residual, kBeta};
    cuda::chunk_top_k(input, chunks, output(), &arena.flags()->non_finite, stream);
  };
  row.verify = [&arena, chunks, output, n = row.n_entries, run = row.run]() -> std::string {
    arena.fresh_residual();
    run(arena.stream.get());
    arena.stream.wait();
    std::vector<float> residual(arena.host_residual.begin(), arena.host_residual.end());
    std::vector<std::uint32_t> indices(n);
    std::vector<float> values(n);
    TopKWorkspace workspace;
    cpu::chunk_top_k({arena.host.x, residual, residual, kBeta}, chunks.chunk, chunks.k_per_chunk,
                     {indices, values}, workspace);
    if (to_host(output().indices) != indices) return "other entries than the CPU's";
    if (!same(to_host(output().values), values)) return "not the CPU's values";
    return same(to_host(arena.residual), residual) ? "" : "not the CPU's residual";
  };
  return row;
}

/// Indices that top-k chose, and their code.
struct IndexCoding {
  DeviceArena& arena;
  std::size_t k = 0;
  bool packed = false;
  Chunking chunking{};
  cuda::RiceWorkspace workspace{};
  std::size_t size = 0;

  std::span<std::uint32_t> indices() { return arena.indices.take(k); }
  std::span<std::byte> room() {
    return arena.payload.take(packed ? packed_bytes(chunking) : rice_max_bytes(arena.n(), k));
  }
  void choose() {
    cuda::TopKWorkspace selection;
    const TopKInput input{arena.x, {}, {}};
    const TopKOutput out{indices(), arena.values.take(k)};
    std::int32_t* flag = &arena.flags()->non_finite;
    if (packed) {
      cuda::chunk_top_k(input, {chunking.chunk, chunking.k_per_chunk}, out, flag,
                        arena.stream.get());
    } else {
      cuda::top_k(input, out, flag, selection, arena.stream.get());
    }
    workspace.reserve(arena.n(), k);
    encode(arena.stream.get());
    arena.stream.wait();
    size = packed ? packed_bytes(chunking) : arena.flags_on_host().n_bytes[0];
  }
  void encode(cudaStream_t stream) {
    if (packed) {
      cuda::packed_encode(indices(), chunking, 0, room(), stream);
    } else {
      cuda::rice_encode({.indices = indices(), .n = arena.n()},
                        {.bytes = room(), .n_bytes = arena.flags()->n_bytes}, workspace, stream);
    }
  }
  void decode(cudaStream_t stream) {
    const std::span<const std::byte> bytes = room().first(size);
    std::int32_t* corrupt = &arena.flags()->corrupt;
    if (packed) {
      cuda::packed_decode(bytes, chunking, indices(), corrupt, stream);
    } else {
      cuda::rice_decode(bytes, arena.n(), indices(), corrupt, workspace, stream);
    }
  }
};

DeviceRow index_row(const std::shared_ptr<IndexCoding>& coding, bool decode) {
  DeviceRow row;
  row.kernel = std::string(coding->packed ? "packed" : "rice") + (decode ? "_decode" : "_encode");
  row.n_entries = coding->k;
  row.prepare = [coding, decode] {
    coding->choose();
    return Traffic{.n = coding->k,
                   .n_read = decode ? 0u : 1u,
                   .written = decode,
                   .code_bytes_read = decode ? coding->size : 0,
                   .code_bytes_written = decode ? 0 : coding->size};
  };
  row.run = [coding, decode](cudaStream_t stream) {
    decode ? coding->decode(stream) : coding->encode(stream);
  };
  row.verify = [coding, run = row.run]() -> std::string {
    coding->choose();
    const std::vector<std::uint32_t> indices = to_host(coding->indices());
    run(coding->arena.stream.get());
    coding->arena.stream.wait();
    std::vector<std::byte> expected(coding->room().size());
    expected.resize(coding->packed ? packed_encode(indices, coding->chunking, expected)
                                   : rice_encode(indices, coding->arena.n(), expected));
    if (to_host(coding->room().first(coding->size)) != expected) return "not the CPU's code";
    if (coding->arena.flags_on_host().corrupt != 0) return "taken for corrupt";
    return to_host(coding->indices()) == indices ? "" : "other indices";
  };
  return row;
}

}  // namespace

std::vector<DeviceRow> format_rows(DeviceArena& arena) {
  std::vector<DeviceRow> rows;
  for (std::size_t i = 0; i < kNumFormats; ++i) {
    const auto format = static_cast<Format>(i);
    const std::string name = format_name(format);
    rows.push_back(encode_row(arena, name, false));
    rows.push_back(encode_row(arena, name + "(beta=0.95)", true));
    if (visit_format(format, []<typename F>(F) { return kStochastic<F>; })) {
      rows.push_back(encode_row(arena, name + "(stochastic)", false));
      rows.push_back(encode_row(arena, name + "(stochastic, beta=0.95)", true));
    }
    rows.push_back(decode_row(arena, name, false, false));
    rows.push_back(decode_row(arena, name, false, true));
  }
  return rows;
}

std::vector<DeviceRow> sparse_rows(DeviceArena& arena) {
  std::vector<DeviceRow> rows;
  for (const char* name : {"topk(0.01, int8, beta=0.95)", "topk(0.001, int8, beta=0.95)",
                           "chunk_topk(4096, 64, int2, beta=0.95)",
                           "chunk_topk(4096, 64, int2, beta=0.95, index=packed)"}) {
    rows.push_back(encode_row(arena, name, true));
    rows.push_back(decode_row(arena, name, true, false));
    rows.push_back(decode_row(arena, name, true, true));
  }
  for (const auto& [chunk, k] :
       {std::pair(4096u, 64u), std::pair(4096u, 256u), std::pair(1024u, 64u), std::pair(256u, 4u)})
    rows.push_back(chunk_row(arena, chunk, k));
  return rows;
}

std::vector<DeviceRow> device_coding_rows(DeviceArena& arena) {
  constexpr std::uint32_t kChunk = 4096;
  std::vector<DeviceRow> rows;
  for (const bool packed : {false, true}) {
    for (const auto& [name, one_in] : {std::pair("0.1%", 1000u), std::pair("1%", 100u)}) {
      const auto coding = std::make_shared<IndexCoding>(IndexCoding{.arena = arena});
      coding->packed = packed;
      coding->chunking = {arena.n(), kChunk, kChunk / one_in};
      coding->k =
          packed ? packed_count(coding->chunking) : std::max<std::size_t>(1, arena.n() / one_in);
      for (const bool decode : {false, true}) {
        rows.push_back(index_row(coding, decode));
        rows.back().codec = name;
      }
    }
  }
  return rows;
}

}  // namespace fedcomm::bench
