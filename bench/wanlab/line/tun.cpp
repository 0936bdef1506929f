#include "tun.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace fedcomm::wanlab {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

File open_file(const char* path, int flags) {
  const int fd = ::open(path, flags | O_CLOEXEC);
  if (fd < 0) fail(path);
  return File(fd);
}

File make_device(int namespace_fd, const std::string& name) {
  const File home = open_file("/proc/self/ns/net", O_RDONLY);
  if (::setns(namespace_fd, CLONE_NEWNET) != 0) fail("setns");
  File device = open_file("/dev/net/tun", O_RDWR | O_NONBLOCK);
  ifreq request = {};
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
  if (::ioctl(device.fd(), TUNSETIFF, &request) != 0) fail("TUNSETIFF");
  constexpr unsigned long kTcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
  constexpr unsigned long kUdp = 0x20 | 0x40;  // TUN_F_USO4, TUN_F_USO6: Linux 6.2
  if (::ioctl(device.fd(), TUNSETOFFLOAD, kTcp | kUdp) != 0 &&
      ::ioctl(device.fd(), TUNSETOFFLOAD, kTcp) != 0)
    fail("TUNSETOFFLOAD");
  if (::setns(home.fd(), CLONE_NEWNET) != 0) fail("setns");
  return device;
}

}  // namespace

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

Tun::Tun(int namespace_fd, const std::string& name) : file_(make_device(namespace_fd, name)) {}

Bytes Tun::read(std::span<std::byte> buffer) const {
  const ssize_t n = ::read(fd(), buffer.data(), buffer.size());
  return buffer.first(n > 0 ? static_cast<std::size_t>(n) : 0);
}

bool Tun::write(Bytes packet) const {
  return ::write(fd(), packet.data(), packet.size()) == static_cast<ssize_t>(packet.size());
}

}  // namespace fedcomm::wanlab
