#include "python_json.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "files.h"

namespace csg_edge {
namespace {

// The shortest text that reads back as the same number, laid out as repr(float) does it.
std::string repr(double value) {
  char text[40];
  const double size = std::fabs(value);
  const bool wide = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto end = std::to_chars(text, text + sizeof text, value, wide ? std::chars_format::scientific : std::chars_format::fixed);
  std::string found(text, end.ptr);
  if (!wide && found.find('.') == std::string::npos) found += ".0";
  return found;
}

void write(const nlohmann::json& value, std::string& out) {
  if (value.is_object()) {
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.items()) {  // sorted by their bytes, as Python sorts by code points
      if (!first) out += ", ";
      first = false;
      out += nlohmann::json(key).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
      out += ": ";
      write(item, out);
    }
    out += '}';
  } else if (value.is_array()) {
    out += '[';
    for (size_t i = 0; i < value.size(); ++i) {
      if (i != 0) out += ", ";
      write(value[i], out);
    }
    out += ']';
  } else if (value.is_number_float()) {
    out += repr(value.get<double>());
  } else {
    out += value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  }
}

}  // namespace

std::string python_json(const nlohmann::json& value) {
  std::string out;
  write(value, out);
  return out;
}

std::string key_of(const nlohmann::json& parts) { return sha256_of(python_json(parts)); }

}  // namespace csg_edge
