// What a runtime has to offer. Each lives in a module of its own (libcsg_edge_openvino.so, ...), which is loaded when an
// engine asks for it: so a machine without that runtime gets a sentence, not a program that does not start.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "bundle.h"
#include "cache.h"

namespace csg_edge {

// Buffers of one inference, batch 1, owned by the inference.
struct Buffers {
  uint8_t *mask = nullptr, *context = nullptr;
  float *noise = nullptr, *fibre = nullptr;  // fibre: null where the bundle takes none
  const uint8_t* image = nullptr;
  const float* fibre_used = nullptr;
};

// One inference at a time, again and again. `cancel` may be called from any thread; the rest from one.
class Inference {
 public:
  virtual ~Inference() = default;
  virtual const Buffers& buffers() const = 0;
  // Do it on this thread. Throws Failure.
  virtual void run() = 0;
  // Begin it, and return at once.
  virtual void start() = 0;
  // Wait until `deadline` at most; whether it has ended. Throws Failure if it failed or was cancelled.
  virtual bool wait(std::optional<std::chrono::steady_clock::time_point> deadline) = 0;
  virtual void cancel() = 0;
};

// An engine, compiled. Its functions may be called from any thread.
class Model {
 public:
  virtual ~Model() = default;
  virtual std::unique_ptr<Inference> inference() = 0;
};

struct OpenRequest {
  const Manifest& manifest;
  const Engine& engine;
  fs::path file;
  Target target;
  int threads = 0;  // 0: as the runtime has it
  const Cache& cache;
  std::string identity;  // of the engine's content
};

class Backend {
 public:
  virtual ~Backend() = default;
  // As Python reports it: part of the keys of verdicts.
  virtual std::string version() = 0;
  // Empty if this machine can run (device, precision), else the reason with the remedy.
  virtual std::string why_not(const std::string& device, const std::string& precision) = 0;
  // Suffixes of files that it compiles itself.
  virtual bool portable(const std::string& suffix) = 0;
  // Throws Failure: what the runtime says, or inputs and outputs that are not what the manifest promises.
  virtual std::unique_ptr<Model> open(const OpenRequest& request) = 0;
};

// What a module exports, under the name `csg_edge_backend`. Null, with the reason in `why`, where the runtime does not
// start. `interface` is kBackendInterface of the caller: modules of another build are refused.
constexpr int kBackendInterface = 1;
using MakeBackend = Backend* (*)(int interface, std::string* why);

}  // namespace csg_edge
