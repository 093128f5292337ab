// JSON text as Python's json.dumps(sort_keys=True) writes it: the keys of the cache are hashes of such text.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace csg_edge {

std::string python_json(const nlohmann::json& value);

// A key of the cache: another value of any part is another key (csg_edge/cache.py, `key_of`).
std::string key_of(const nlohmann::json& parts);

}  // namespace csg_edge
