// Streams: trivial loops that move a given mix of bytes between memory and core and do nothing
// else. Their time is the ceiling that a kernel with the same mix is compared with. They run on the
// library's thread pool, like the kernels, and in memory of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace fedcomm::bench {

/// Memory straight from the kernel, with pages of the machine's default size.
class Memory {
 public:
  /// fresh: take() maps new memory at each call, so that whoever writes to it meets page faults.
  explicit Memory(bool fresh = false) : fresh_(fresh) {}
  ~Memory() { release(); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// Room for n objects. Unless fresh, its pages have been touched, and it stays what and where it
  /// is until more is asked for.
  template <typename T>
  std::span<T> take(std::size_t n) {
    make_room(n * sizeof(T), fresh_);
    return {reinterpret_cast<T*>(data_), n};
  }
  /// As take(), but the memory of the last take() even where fresh.
  template <typename T>
  std::span<T> last(std::size_t n) {
    make_room(n * sizeof(T), false);
    return {reinterpret_cast<T*>(data_), n};
  }

 private:
  void make_room(std::size_t n_bytes, bool anew);
  void release();

  bool fresh_;
  std::byte* data_ = nullptr;
  std::size_t n_bytes_ = 0;
};

/// The bytes that a kernel has to move, each once: its inputs and its outputs. What it keeps in
/// caches meanwhile does not count, nor does memory that an ordinary store reads before writing.
struct Traffic {
  std::size_t n = 0;                                        // length of the float (or index) arrays
  unsigned n_read = 0;                                      // such arrays that are read: 0 to 2
  bool in_place = false;                                    // one that is read and written
  bool written = false;                                     // one that is written
  std::size_t code_bytes_read = 0, code_bytes_written = 0;  // besides those

  std::size_t read_bytes() const { return 4 * n * (n_read + in_place) + code_bytes_read; }
  std::size_t written_bytes() const { return 4 * n * (in_place + written) + code_bytes_written; }
  std::size_t bytes() const { return read_bytes() + written_bytes(); }

  bool operator==(const Traffic&) const = default;
};

/// How a stream writes what it does not read: through the caches, which read the line first, or
/// past them.
enum class Stores : std::uint8_t { ordinary, streaming };

const char* name_of(Stores stores);

/// The ways to move this mix: one, where there is nothing but what is written in place.
std::vector<Stores> ways_to_move(const Traffic& traffic);

class Streams {
 public:
  /// Elements are moved in strips of this many; codes in whole cache lines a strip.
  static constexpr std::size_t kStrip = 512;

  /// The mix that run() moves in fact: as near to `traffic` as whole strips and lines allow.
  static Traffic rounded(const Traffic& traffic);

  void run(const Traffic& traffic, Stores stores);

  // What it works on, for a test that all of it is moved.
  std::span<float> read_array(unsigned index, std::size_t n) { return read_[index].take<float>(n); }
  std::span<float> target(std::size_t n) { return target_.take<float>(n); }
  std::span<std::byte> codes_written(std::size_t n) { return codes_written_.take<std::byte>(n); }

 private:
  Memory read_[2], target_, codes_read_, codes_written_;
};

}  // namespace fedcomm::bench
