// The runtimes of one handle, each loaded from its module at the first engine that asks for it.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backend.h"

namespace csg_edge {

class Backends {
 public:
  // Null where the module or its runtime is missing here; `why` then says so, with the remedy.
  Backend* find(const std::string& runtime, std::string* why);

 private:
  struct Entry {
    std::unique_ptr<Backend> backend;
    std::string why;
  };

  std::map<std::string, Entry> found_;
};

}  // namespace csg_edge
