// What goes wrong inside, with the status that the caller gets. The C surface (api.cpp) turns it into both.
#pragma once

#include <stdexcept>
#include <string>

#include "csg_edge.h"

namespace csg_edge {

class Failure : public std::runtime_error {
 public:
  Failure(csg_edge_status why, const std::string& text) : std::runtime_error(text), status(why) {}
  const csg_edge_status status;
};

[[noreturn]] inline void refuse(const std::string& text) { throw Failure(CSG_EDGE_INVALID_ARGUMENT, text); }
[[noreturn]] inline void bad_bundle(const std::string& text) { throw Failure(CSG_EDGE_BAD_BUNDLE, text); }
[[noreturn]] inline void engine_failed(const std::string& text) { throw Failure(CSG_EDGE_ENGINE_FAILED, text); }

}  // namespace csg_edge
