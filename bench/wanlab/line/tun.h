// A TUN device made inside another network namespace.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "packet.h"

namespace fedcomm::wanlab {

/// Owns a file descriptor.
class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  File(File&& other) noexcept;
  File& operator=(File&& other) = delete;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();
  int fd() const { return fd_; }

 private:
  int fd_;
};

class Tun {
 public:
  /// Makes the device `name` in the namespace that `namespace_fd` refers to; it exists as long as
  /// this object. Packets carry a virtio header; TCP, and from Linux 6.2 on UDP, hand over up to
  /// 64 KiB at a time, without checksums. Throws std::system_error.
  Tun(int namespace_fd, const std::string& name);

  int fd() const { return file_.fd(); }
  /// The next packet that the namespace sends, or nothing.
  Bytes read(std::span<std::byte> buffer) const;
  /// Whether the namespace took it.
  bool write(Bytes packet) const;

 private:
  File file_;
};

}  // namespace fedcomm::wanlab
