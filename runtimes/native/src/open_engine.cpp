#include "open_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "failure.h"
#include "noise.h"

namespace csg_edge {
namespace {

constexpr uint8_t kNoMask = 255;
constexpr float kRounding = 1e-3F;  // by which a coherence may exceed 1

ptrdiff_t checked_stride(ptrdiff_t stride, int32_t width, const char* what) {
  if (stride == 0) return width;
  if (std::abs(stride) < width) {
    refuse(std::string(what) + "_stride " + std::to_string(stride) + ": give at least " + std::to_string(width) + " bytes, or 0");
  }
  return stride;
}

void copy_rows(const uint8_t* from, ptrdiff_t from_stride, uint8_t* to, ptrdiff_t to_stride, int32_t height, int32_t width) {
  for (int32_t row = 0; row < height; ++row) std::memcpy(to + row * to_stride, from + row * from_stride, size_t(width));
}

bool all_finite(const float* values, size_t count) {
  // x - x is 0 for every finite x and NaN for the others, without a branch.
  float sum = 0;
  for (size_t i = 0; i < count; ++i) sum += values[i] - values[i];
  return sum == 0;
}

// csg_edge/conditions/fibres.py, `check_field`.
void check_field(const float* field, size_t values) {
  const size_t cells = values / kFibreChannels;
  if (!all_finite(field, values)) {
    refuse("fibre: holds NaN or infinity; give 0, with 0 in the third channel, where nothing is known");
  }
  for (size_t i = 0; i < cells; ++i) {
    if (std::hypot(field[i], field[cells + i]) > 1 + kRounding) {
      refuse("fibre: coherence above 1; the first two channels are coherence x (cos 2a, sin 2a), from 0 to 1");
    }
    if (field[2 * cells + i] < 0 || field[2 * cells + i] > 1) {
      refuse("fibre: third channel outside 0 to 1; it says how much of a cell is given");
    }
  }
}

}  // namespace

// An inference for the time of one job.
class OpenEngine::Lease {
 public:
  explicit Lease(OpenEngine& engine) : engine_(engine) {
    {
      const std::lock_guard<std::mutex> lock(engine_.mutex_);
      if (!engine_.idle_.empty()) {
        kept_ = std::move(engine_.idle_.back());
        engine_.idle_.pop_back();
        return;
      }
      engine_.idle_.reserve(++engine_.made_);  // so that giving back takes no memory
    }
    kept_.inference = engine_.model_->inference();
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (kept_.inference == nullptr) return;
    const std::lock_guard<std::mutex> lock(engine_.mutex_);
    engine_.idle_.push_back(std::move(kept_));
  }
  Kept& operator*() { return kept_; }

 private:
  OpenEngine& engine_;
  Kept kept_;
};

void OpenEngine::make(const Job& job) {
  const auto begin = std::chrono::steady_clock::now();
  if (job.image == nullptr) refuse("image: NULL; give memory for the image");
  if (!manifest_.fibre && (job.fibre != nullptr || job.fibre_used != nullptr)) {
    refuse(manifest_.name + ": this bundle takes no fibre field; leave fibre and fibre_used NULL");
  }
  const auto [height, width] = manifest_.image_size;
  const ptrdiff_t stride = checked_stride(job.image_stride, width, "image");
  Lease lease(*this);
  fill(job, *lease);
#ifdef CSG_EDGE_PLANTED  // a race and a leak, for the test that the sanitizers find them here, whatever is suppressed
  ++planted_;
  char* volatile lost = new char[64];
  static_cast<void>(lost);
#endif
  Inference& inference = *(*lease).inference;
  run(inference, job, begin);
  const Buffers& buffers = inference.buffers();
  copy_rows(buffers.image, width, job.image, stride, height, width);
  if (job.fibre_used != nullptr) std::copy_n(buffers.fibre_used, manifest_.fibre_values(), job.fibre_used);
}

void OpenEngine::fill(const Job& job, Kept& kept) const {
  const Buffers& buffers = kept.inference->buffers();
  const auto [height, width] = manifest_.image_size;
  const size_t pixels = manifest_.pixels();
  if (job.mask == nullptr) {
    std::fill_n(buffers.mask, pixels, kNoMask);
  } else {
    copy_rows(job.mask, checked_stride(job.mask_stride, width, "mask"), buffers.mask, width, height, width);
    int highest = 0;
    for (size_t i = 0; i < pixels; ++i) highest = std::max(highest, buffers.mask[i] == kNoMask ? 0 : int(buffers.mask[i]));
    if (size_t(highest) >= manifest_.labels.size()) {
      refuse("mask: class " + std::to_string(highest) + " is outside the bundle's 0 to " +
             std::to_string(manifest_.labels.size() - 1) + "; map your classes to these");
    }
  }
  if (job.context == nullptr) {
    std::fill_n(buffers.context, pixels, uint8_t{0});
  } else {
    copy_rows(job.context, checked_stride(job.context_stride, width, "context"), buffers.context, width, height, width);
  }
  const size_t values = manifest_.noise_values();
  if (job.noise != nullptr) {
    if (!all_finite(job.noise, values)) refuse("noise: holds NaN or infinity; give standard normal values");
    kept.seed.reset();
    std::copy_n(job.noise, values, buffers.noise);
  } else if (kept.seed != job.seed) {
    noise_for(job.seed, buffers.noise, values);
    kept.seed = job.seed;
  }
  if (manifest_.fibre) {
    if (job.fibre == nullptr) {
      std::fill_n(buffers.fibre, manifest_.fibre_values(), 0.0F);
    } else {
      check_field(job.fibre, manifest_.fibre_values());
      std::copy_n(job.fibre, manifest_.fibre_values(), buffers.fibre);
    }
  }
}

void OpenEngine::run(Inference& inference, const Job& job, std::chrono::steady_clock::time_point begin) {
  if (job.cancellation == nullptr && job.timeout_ms == 0) {
    inference.run();
    return;
  }
  std::optional<std::chrono::steady_clock::time_point> deadline;
  if (job.timeout_ms != 0) deadline = begin + std::chrono::milliseconds(job.timeout_ms);
  const Cancellation::Watch watch(job.cancellation, inference);
  const auto triggered = [&] { return job.cancellation != nullptr && job.cancellation->triggered(); };
  if (triggered()) throw Failure(CSG_EDGE_CANCELLED, "cancelled before it began; reset the cancellation to go on");
  inference.start();
  if (triggered()) inference.cancel();  // what was triggered in between found nothing to cancel
  if (inference.wait(deadline)) return;
  inference.cancel();
  try {
    inference.wait(std::nullopt);  // until its memory is free
  } catch (const Failure&) {       // as asked for
  }
  throw Failure(CSG_EDGE_TIMED_OUT, "no image after " + std::to_string(job.timeout_ms) + " ms; give more time");
}

}  // namespace csg_edge
