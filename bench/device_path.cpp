// The path of a bucket that a reduction takes on one GPU, without the network: encoded in pieces,
// each copied to pinned memory of the host as soon as its size is known there, back to the device,
// and decoded. Compared with encoding and decoding all of it at once, with no copies at all.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/error.h"
#include "device_rows.h"

namespace fedcomm::bench {
namespace {

constexpr std::size_t kPieces = 3;
constexpr auto kDeadline = std::chrono::seconds(10);

class Mark {
 public:
  Mark() { check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "an event"); }
  ~Mark() { cudaEventDestroy(event_); }
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;

  void set(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "an event"); }
  /// Work put on `stream` from now on comes after the mark.
  void lead(cudaStream_t stream) const {
    check_cuda(cudaStreamWaitEvent(stream, event_, 0), "an event");
  }
  /// Looks again and again, as an engine does that has other things to look for.
  void wait() const {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    for (;;) {
      const cudaError_t status = cudaEventQuery(event_);
      if (status == cudaSuccess) return;
      if (status != cudaErrorNotReady) check_cuda(status, "an event");
      if (std::chrono::steady_clock::now() > end) fail(ErrorKind::timeout, "no progress for 10 s");
    }
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class Pinned {
 public:
  explicit Pinned(std::size_t n_bytes) : n_bytes_(n_bytes) {
    check_cuda(cudaMallocHost(&data_, n_bytes), "pinned memory");
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(data_), n_bytes_}; }

 private:
  void* data_ = nullptr;
  std::size_t n_bytes_;
};

struct Piece {
  std::size_t begin = 0, end = 0;
  std::span<std::byte> sent, arrived;  // on the device
  std::span<std::byte> on_host;
  Mark encoded, sized, left, came;
};

/// A copy of a few bytes, so that the host needs not wait for more than it asks for.
void copy(const void* from, void* to, std::size_t n_bytes, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, stream), "a copy");
}

class Path {
 public:
  Path(DeviceArena& arena, const std::string& name)
      : arena_(arena),
        codec_(make_codec(name)),
        sender_(codec_->on_device()),
        receiver_(codec_->on_device()),
        n_bytes_(kPieces * sizeof(std::uint64_t)) {
    const std::size_t n = arena.n();
    const std::size_t step = (n / kPieces + 8) / 8 * 8;
    std::size_t room = 0;
    for (std::size_t i = 0; i < kPieces; ++i) {
      pieces_[i].begin = std::min(n, i * step);
      pieces_[i].end = std::min(n, (i + 1) * step);
      room = std::max(room, codec_->segment_bytes(pieces_[i].end - pieces_[i].begin, n));
    }
    room = (room + 255) / 256 * 256;
    host_ = std::make_unique<Pinned>(kPieces * room);
    for (std::size_t i = 0; i < kPieces; ++i) {
      pieces_[i].sent = sent_.take(kPieces * room).subspan(i * room, room);
      pieces_[i].arrived = arrived_.take(kPieces * room).subspan(i * room, room);
      pieces_[i].on_host = host_->bytes().subspan(i * room, room);
    }
    sender_->reserve_encode(n);
    receiver_->reserve_decode(n, n);
    whole_.take(codec_->wire_bytes(n));
    arena.decoded.take(n);
  }

  const std::string& name() const { return codec_->name(); }

  void run(cudaStream_t stream) {
    Flags* flags = arena_.flags();
    start_.set(stream);
    for (const Stream* each : {&sizes_, &out_, &in_, &decoding_})
      start_.lead(each->get());
    sender_->begin(arena_.x, options(), &flags->non_finite, stream);
    for (std::size_t i = 0; i < kPieces; ++i) {
      Piece& piece = pieces_[i];
      sender_->encode_piece(piece.begin, piece.end,
                            {piece.sent, flags->n_bytes + i, &flags->non_finite}, stream);
      // Neither on `stream`, whose next kernel would wait for the copy, nor before payloads.
      piece.encoded.set(stream);
      piece.encoded.lead(sizes_.get());
      copy(flags->n_bytes + i, &size_of(i), sizeof(std::uint64_t), sizes_.get());
      piece.sized.set(sizes_.get());
    }
    std::size_t n_left = 0;
    for (std::size_t i = 0; i < kPieces; ++i) {
      Piece& piece = pieces_[i];
      piece.sized.wait();
      copy(piece.sent.data(), piece.on_host.data(), size_of(i), out_.get());
      piece.left.set(out_.get());
      if (i > 0) bring_back(n_left++);
    }
    bring_back(n_left);
    end_.set(decoding_.get());
    end_.lead(stream);
  }

  /// Without pieces and copies.
  void run_kernels(cudaStream_t stream) {
    Flags* flags = arena_.flags();
    const auto room = whole_.take(codec_->wire_bytes(arena_.n()));
    sender_->encode(arena_.x, options(), {room, flags->n_bytes, &flags->non_finite}, stream);
    const std::span<const std::byte> head = std::as_bytes(std::span(&whole_count_, 1));
    receiver_->decode({room.first(whole_size_), head}, arena_.decoded.take(arena_.n()),
                      &flags->corrupt, stream);
  }

  /// Finds out what run_kernels() will decode: each run encodes the same.
  void prepare() {
    const auto room = whole_.take(codec_->wire_bytes(arena_.n()));
    Flags* flags = arena_.flags();
    sender_->encode(arena_.x, options(), {room, flags->n_bytes, &flags->non_finite},
                    arena_.stream.get());
    arena_.stream.wait();
    whole_size_ = arena_.flags_on_host().n_bytes[0];
    whole_count_ = 0;
    std::memcpy(&whole_count_, to_host(room.first(sizeof whole_count_)).data(),
                sizeof whole_count_);
  }
  std::size_t whole_size() const { return whole_size_; }

  std::string verify() {
    run(arena_.stream.get());
    arena_.stream.wait();
    std::vector<float> expected(arena_.n()), after(arena_.n());
    const auto whole =
        codec_->begin(arena_.host.x, {.feedback = {arena_.host_residual, after}, .draw = {}});
    for (const Piece& piece : pieces_) {
      const std::size_t n = piece.end - piece.begin;
      std::vector<std::byte> payload(codec_->segment_bytes(n, arena_.n()));
      payload.resize(whole->encode(piece.begin, piece.end, payload));
      codec_->decode(payload, std::span(expected).subspan(piece.begin, n));
    }
    if (arena_.flags_on_host().corrupt != 0) return "taken for corrupt";
    const std::vector<float> rest = to_host(arena_.residual);
    if (std::memcmp(rest.data(), after.data(), arena_.n() * sizeof(float)) != 0)
      return "not the CPU's residual";
    const std::vector<float> found = to_host(arena_.decoded.take(arena_.n()));
    return std::memcmp(found.data(), expected.data(), arena_.n() * sizeof(float)) == 0
               ? ""
               : "not what the CPU decodes";
  }

 private:
  /// The old residual stays, so that each run does the same.
  EncodeOptions options() const {
    return {.feedback = {arena_.residual_copy.take(arena_.n()), arena_.residual}, .draw = {}};
  }
  std::uint64_t& size_of(std::size_t i) const {
    return reinterpret_cast<std::uint64_t*>(n_bytes_.bytes().data())[i];
  }

  void bring_back(std::size_t i) {
    Piece& piece = pieces_[i];
    piece.left.wait();
    copy(piece.on_host.data(), piece.arrived.data(), size_of(i), in_.get());
    piece.came.set(in_.get());
    piece.came.lead(decoding_.get());
    receiver_->decode({piece.arrived.first(size_of(i)), piece.on_host.first(size_of(i))},
                      arena_.decoded.take(arena_.n()).subspan(piece.begin, piece.end - piece.begin),
                      &arena_.flags()->corrupt, decoding_.get());
  }

  DeviceArena& arena_;
  std::shared_ptr<const Codec> codec_;
  std::unique_ptr<DeviceCodec> sender_, receiver_;
  Piece pieces_[kPieces];
  DeviceMemory<std::byte> sent_, arrived_, whole_;
  std::unique_ptr<Pinned> host_;
  Pinned n_bytes_;
  std::size_t whole_size_ = 0;
  std::uint32_t whole_count_ = 0;
  Stream sizes_, out_, in_, decoding_;
  Mark start_, end_;
};

}  // namespace

std::vector<DeviceRow> path_rows(DeviceArena& arena) {
  std::vector<DeviceRow> rows;
  for (const char* name : {"topk(0.01, int8, beta=0.95)"}) {
    // Its memory is taken only if the row is chosen.
    const auto path = std::make_shared<std::unique_ptr<Path>>();
    DeviceRow row;
    row.kernel = "whole path";
    row.codec = name;
    row.prepare = [&arena, path, name] {
      *path = std::make_unique<Path>(arena, name);
      (*path)->prepare();
      return Traffic{.n = arena.n(),
                     .n_read = 2,
                     .written = true,
                     .code_bytes_read = (*path)->whole_size(),
                     .code_bytes_written = (*path)->whole_size()};
    };
    row.run = [path](cudaStream_t stream) { (*path)->run(stream); };
    row.reference = [path](cudaStream_t stream) { (*path)->run_kernels(stream); };
    row.verify = [path] { return (*path)->verify(); };
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace fedcomm::bench
