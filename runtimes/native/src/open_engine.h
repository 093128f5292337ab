// One engine, open: jobs in, images out, from any number of threads.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "backend.h"
#include "cancellation.h"

namespace csg_edge {

// An image to make, as csg_edge_job describes it, in full.
struct Job {
  const uint8_t* mask = nullptr;
  ptrdiff_t mask_stride = 0;
  const uint8_t* context = nullptr;
  ptrdiff_t context_stride = 0;
  uint64_t seed = 0;
  const float* noise = nullptr;
  const float* fibre = nullptr;
  uint8_t* image = nullptr;
  ptrdiff_t image_stride = 0;
  float* fibre_used = nullptr;
  uint32_t timeout_ms = 0;
  Cancellation* cancellation = nullptr;
};

class OpenEngine {
 public:
  OpenEngine(const Manifest& manifest, std::unique_ptr<Model> model) : manifest_(manifest), model_(std::move(model)) {}

  // Throws Failure.
  void make(const Job& job);

 private:
  class Lease;

  // An inference, and the seed whose noise its buffer still holds: with the same seed again nothing is drawn.
  struct Kept {
    std::unique_ptr<Inference> inference;
    std::optional<uint64_t> seed;
  };

  void fill(const Job& job, Kept& kept) const;
  static void run(Inference& inference, const Job& job, std::chrono::steady_clock::time_point begin);

  const Manifest& manifest_;
  std::unique_ptr<Model> model_;
  std::mutex mutex_;
  std::vector<Kept> idle_;
  size_t made_ = 0;  // inferences, idle or not
#ifdef CSG_EDGE_PLANTED
  int planted_ = 0;
#endif
};

}  // namespace csg_edge
