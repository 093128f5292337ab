// Files of a bundle and of the cache: read within bounds, hashed, written whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace csg_edge {

namespace fs = std::filesystem;

struct FileEntry {
  std::string sha256;  // hex
  uint64_t size = 0;
};

// A folder or file named in UTF-8.
fs::path path_of(std::string_view utf8);

// The bytes of a regular file of at most `limit` bytes. Throws Failure (bad bundle).
std::string read_bytes(const fs::path& path, uint64_t limit);

// SHA-256 in hex.
std::string sha256_of(std::string_view bytes);

// Hash and size of a regular file, read piece by piece. Throws Failure (bad bundle).
FileEntry entry_of(const fs::path& path);

// A file mapped copy-on-write into memory, so that what a runtime changes in it stays in this process.
class Mapping {
 public:
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  // Throws std::system_error for a file that cannot be mapped.
  explicit Mapping(const fs::path& path);
  ~Mapping();
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace csg_edge
