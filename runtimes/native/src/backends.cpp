#include "backends.h"

#include <dlfcn.h>

namespace csg_edge {
namespace {

// Modules lie beside this library.
fs::path folder() {
  Dl_info about{};
  if (dladdr(reinterpret_cast<const void*>(&folder), &about) == 0 || about.dli_fname == nullptr) return {};
  std::error_code error;
  const fs::path real = fs::canonical(about.dli_fname, error);
  return error ? fs::path() : real.parent_path();
}

std::unique_ptr<Backend> load(const std::string& runtime, std::string* why) {
  if (runtime.find_first_not_of("abcdefghijklmnopqrstuvwxyz-") != std::string::npos) {
    *why = "runtime " + runtime + " is unknown; update the library";
    return nullptr;
  }
  std::string name = "libcsg_edge_" + runtime + ".so";
  const fs::path path = folder() / name;
  std::error_code error;
  if (!fs::exists(path, error)) {
    *why = "this build has no " + name + " beside its library; install it, or choose another runtime";
    return nullptr;
  }
  // Never closed again: runtimes keep threads and tables of their own.
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    const char* reason = dlerror();
    *why = name + " does not load (" + (reason == nullptr ? "no reason given" : reason) + "); install the runtime it needs";
    return nullptr;
  }
  const auto make = reinterpret_cast<MakeBackend>(dlsym(module, "csg_edge_backend"));
  if (make == nullptr) {
    *why = name + " is no module of this library; install it again";
    return nullptr;
  }
  return std::unique_ptr<Backend>(make(kBackendInterface, why));
}

}  // namespace

Backend* Backends::find(const std::string& runtime, std::string* why) {
  auto item = found_.find(runtime);
  if (item == found_.end()) {
    item = found_.emplace(runtime, Entry{}).first;
    item->second.backend = load(runtime, &item->second.why);
  }
  *why = item->second.why;
  return item->second.backend.get();
}

}  // namespace csg_edge
