// Compiled engines and verdicts in the user's cache folder, in the format of csg_edge/cache.py, so that Python and this
// library share them. Nothing here is needed for a result: what cannot be read or written is a cache miss.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "files.h"

namespace csg_edge {

// A payload of the cache, mapped from its file, which ends in a digest.
struct Blob {
  std::shared_ptr<Mapping> mapping;
  size_t size = 0;

  char* data() const { return mapping->data(); }
  std::string_view view() const { return {mapping->data(), size}; }
};

class Cache {
 public:
  // folder: where; empty: no cache.
  explicit Cache(fs::path folder) : folder_(std::move(folder)) {}

  // The user's folder, or CSG_EDGE_CACHE if that is set; empty if there is no home.
  static fs::path user_folder();

  std::optional<Blob> load(const std::string& key) const;
  void store(const std::string& key, std::string_view payload) const;
  void discard(const std::string& key) const;

 private:
  void make_room(uint64_t size) const;
  fs::path path(const std::string& key) const { return folder_ / (key + ".blob"); }

  fs::path folder_;
};

}  // namespace csg_edge
