// csg_edge.hpp: the C interface for C++17, with handles that close themselves and failures that are exceptions.
//
//     csg_edge::Generator generator("msk-256");
//     csg_edge_job job = CSG_EDGE_JOB_INIT;
//     ...
//     generator.generate(job);
#ifndef CSG_EDGE_HPP
#define CSG_EDGE_HPP

#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "csg_edge.h"

namespace csg_edge {

// A call that failed: its status, and its sentence as what().
class Error : public std::runtime_error {
 public:
  Error(csg_edge_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  csg_edge_status status() const noexcept { return status_; }

 private:
  csg_edge_status status_;
};

// Stops the jobs that carry it, from any thread. It must outlive them.
class Cancellation {
 public:
  Cancellation() : handle_(csg_edge_cancellation_create(), csg_edge_cancellation_destroy) {
    if (handle_ == nullptr) throw std::bad_alloc();
  }
  void trigger() const { csg_edge_cancellation_trigger(handle_.get()); }
  void reset() const { csg_edge_cancellation_reset(handle_.get()); }
  csg_edge_cancellation* get() const { return handle_.get(); }

 private:
  std::unique_ptr<csg_edge_cancellation, decltype(&csg_edge_cancellation_destroy)> handle_;
};

// One engine of a bundle, open. May be used by any number of threads.
class Generator {
 public:
  explicit Generator(const std::string& bundle, const csg_edge_options& options = CSG_EDGE_OPTIONS_INIT)
      : handle_(nullptr, csg_edge_close) {
    csg_edge_generator* opened = nullptr;
    const csg_edge_status status = csg_edge_open(bundle.c_str(), &options, &opened);
    handle_.reset(opened);
    check(status);
  }

  csg_edge_info info() const {
    csg_edge_info found = CSG_EDGE_INFO_INIT;
    check(csg_edge_get_info(handle_.get(), &found));
    return found;
  }

  std::vector<std::string> classes() const {
    std::vector<std::string> found;
    for (int32_t i = 0; const char* name = csg_edge_class_name(handle_.get(), i); ++i) found.emplace_back(name);
    return found;
  }

  std::string engine() const { return csg_edge_engine(handle_.get()); }
  std::string choice() const { return csg_edge_choice(handle_.get()); }

  void generate(const csg_edge_job& job) const { check(csg_edge_generate(handle_.get(), &job)); }

  // The golden cases; throws where one is beyond tolerance.
  csg_edge_verification verify() const {
    csg_edge_verification found = CSG_EDGE_VERIFICATION_INIT;
    check(csg_edge_verify(handle_.get(), &found));
    return found;
  }

 private:
  void check(csg_edge_status status) const {
    if (status == CSG_EDGE_OK) return;
    std::string text(csg_edge_last_error(handle_.get(), nullptr, 0) + 1, '\0');
    csg_edge_last_error(handle_.get(), text.data(), text.size());
    text.pop_back();
    throw Error(status, text.empty() ? csg_edge_status_text(status) : text);
  }

  std::unique_ptr<csg_edge_generator, decltype(&csg_edge_close)> handle_;
};

}  // namespace csg_edge

#endif
