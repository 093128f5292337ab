#include "cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>
#include <system_error>
#include <tuple>
#include <vector>

namespace csg_edge {
namespace {

constexpr uint64_t kLimit = uint64_t{512} << 20;  // of all entries together
constexpr size_t kDigest = 32;
constexpr auto kStale = std::chrono::hours(1);  // what a killed process left aside is removed after that

std::string digest_of(std::string_view payload) {
  const std::string hex = sha256_of(payload);
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

fs::path from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? fs::path() : fs::path(value);
}

}  // namespace

fs::path Cache::user_folder() {
  if (const fs::path chosen = from_environment("CSG_EDGE_CACHE"); !chosen.empty()) return chosen;
  if (const fs::path base = from_environment("XDG_CACHE_HOME"); !base.empty()) return base / "csg-edge";
  const fs::path home = from_environment("HOME");
  return home.empty() ? home : home / ".cache" / "csg-edge";
}

std::optional<Blob> Cache::load(const std::string& key) const {
  if (folder_.empty()) return std::nullopt;
  try {
    auto mapping = std::make_shared<Mapping>(path(key));
    if (mapping->size() <= kDigest) return std::nullopt;
    Blob blob{mapping, mapping->size() - kDigest};
    if (digest_of(blob.view()) != std::string_view(blob.data() + blob.size, kDigest)) return std::nullopt;
    ::utimensat(AT_FDCWD, path(key).c_str(), nullptr, 0);  // for the order of removal
    return blob;
  } catch (const std::system_error&) {
    return std::nullopt;
  }
}

void Cache::store(const std::string& key, std::string_view payload) const {
  const uint64_t size = payload.size() + kDigest;
  if (folder_.empty() || size > kLimit) return;
  std::error_code error;
  if (fs::create_directories(folder_, error)) fs::permissions(folder_, fs::perms::owner_all, error);
  if (!fs::is_directory(folder_, error)) return;
  make_room(size);
  const fs::path aside = folder_ / (key + "." + std::to_string(::getpid()) + "-" + std::to_string(std::random_device{}()) + ".partial");
  {
    std::ofstream file(aside, std::ios::binary);
    const std::string digest = digest_of(payload);
    file.write(payload.data(), std::streamsize(payload.size()));
    file.write(digest.data(), std::streamsize(digest.size()));
    file.close();
    if (!file) {
      fs::remove(aside, error);
      return;
    }
  }
  fs::rename(aside, path(key), error);
  if (error) fs::remove(aside, error);
}

void Cache::discard(const std::string& key) const {
  std::error_code error;
  if (!folder_.empty()) fs::remove(path(key), error);
}

void Cache::make_room(uint64_t size) const {
  std::error_code error;
  std::vector<std::tuple<fs::file_time_type, uint64_t, fs::path>> entries;
  uint64_t total = size;
  for (auto item = fs::directory_iterator(folder_, error); !error && item != fs::directory_iterator(); item.increment(error)) {
    std::error_code ignored;
    const fs::path path = item->path();
    const auto changed = fs::last_write_time(path, ignored);
    if (path.extension() == ".blob") {
      entries.emplace_back(changed, fs::file_size(path, ignored), path);
      total += std::get<1>(entries.back());
    } else if (path.extension() == ".partial" && fs::file_time_type::clock::now() - changed > kStale) {
      fs::remove(path, ignored);
    }
  }
  std::sort(entries.begin(), entries.end());
  for (const auto& [changed, bytes, path] : entries) {
    if (total <= kLimit) break;
    fs::remove(path, error);
    total -= bytes;
  }
}

}  // namespace csg_edge
