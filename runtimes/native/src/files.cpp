#include "files.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "failure.h"

namespace csg_edge {
namespace {

// An open regular file; anything else, such as a pipe that nobody writes to, is refused without waiting for it.
class File {
 public:
  explicit File(const fs::path& path) : path_(path), handle_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat status {};
    if (handle_ < 0 || ::fstat(handle_, &status) != 0) {
      const std::string reason = std::strerror(errno);
      close();
      bad_bundle(path.string() + ": cannot read (" + reason + "); check its permissions");
    }
    if (!S_ISREG(status.st_mode)) {
      close();
      bad_bundle(path.string() + ": not a file; copy the bundle again");
    }
    size_ = static_cast<uint64_t>(status.st_size);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { close(); }

  uint64_t size() const { return size_; }

  // At most `count` bytes; 0 at the end.
  size_t read(char* into, size_t count) {
    for (;;) {
      const ssize_t got = ::read(handle_, into, count);
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) bad_bundle(path_.string() + ": cannot read (" + std::strerror(errno) + "); check its disk");
    }
  }

 private:
  void close() {
    if (handle_ >= 0) ::close(handle_);
    handle_ = -1;
  }

  fs::path path_;
  int handle_;
  uint64_t size_ = 0;
};

std::string hex(const std::array<unsigned char, SHA256_DIGEST_LENGTH>& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace

fs::path path_of(std::string_view utf8) { return fs::path(std::string(utf8)); }

std::string read_bytes(const fs::path& path, uint64_t limit) {
  File file(path);
  if (file.size() > limit) {
    bad_bundle(path.string() + ": " + std::to_string(file.size()) + " bytes, more than a bundle needs; do not use it");
  }
  std::string bytes(file.size(), '\0');
  size_t filled = 0;
  while (filled < bytes.size()) {
    const size_t got = file.read(bytes.data() + filled, bytes.size() - filled);
    if (got == 0) break;
    filled += got;
  }
  bytes.resize(filled);
  return bytes;
}

// The one-shot form: it needs no provider, so a statically linked libcrypto adds its hash alone.
std::string sha256_of(std::string_view bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256_CTX state;
  SHA256_Init(&state);
  SHA256_Update(&state, bytes.data(), bytes.size());
  SHA256_Final(digest.data(), &state);
  return hex(digest);
}

FileEntry entry_of(const fs::path& path) {
  File file(path);
  std::string piece(std::size_t{1} << 18, '\0');
  SHA256_CTX state;
  SHA256_Init(&state);
  FileEntry entry;
  while (const size_t got = file.read(piece.data(), piece.size())) {
    SHA256_Update(&state, piece.data(), got);
    entry.size += got;
  }
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256_Final(digest.data(), &state);
  entry.sha256 = hex(digest);
  return entry;
}

Mapping::Mapping(const fs::path& path) {
  const int handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status {};
  if (handle < 0 || ::fstat(handle, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0) {
    const int reason = handle < 0 ? errno : EINVAL;
    if (handle >= 0) ::close(handle);
    throw std::system_error(reason, std::generic_category(), path.string());
  }
  size_ = static_cast<size_t>(status.st_size);
  void* found = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, handle, 0);
  const int reason = errno;
  ::close(handle);
  if (found == MAP_FAILED) throw std::system_error(reason, std::generic_category(), path.string());
  data_ = static_cast<char*>(found);
}

Mapping::~Mapping() { ::munmap(data_, size_); }

}  // namespace csg_edge
