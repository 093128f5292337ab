// libFuzzer: options and jobs of any content on a handle, made by a stand-in engine: no memory beyond what they say is
// touched, and whatever does not fit is refused. Pointers are taken from the input as "none" or "there".
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "failure.h"
#include "open_engine.h"

namespace {

class Copying : public csg_edge::Inference {
 public:
  Copying() {
    buffers_.mask = mask_;
    buffers_.context = context_;
    buffers_.noise = noise_;
    buffers_.fibre = fibre_;
    buffers_.image = context_;
    buffers_.fibre_used = fibre_;
  }
  const csg_edge::Buffers& buffers() const override { return buffers_; }
  void run() override {}
  void start() override {}
  bool wait(std::optional<std::chrono::steady_clock::time_point>) override { return true; }
  void cancel() override {}

 private:
  uint8_t mask_[8 * 8] = {}, context_[8 * 8] = {};
  float noise_[4 * 2 * 2] = {}, fibre_[3 * 16 * 16] = {};
  csg_edge::Buffers buffers_;
};

class Stand : public csg_edge::Model {
 public:
  std::unique_ptr<csg_edge::Inference> inference() override { return std::make_unique<Copying>(); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  struct {
    uint8_t there;
    int16_t strides[3];
    uint64_t seed;
    uint32_t timeout;
    uint8_t mask[8 * 8];
    float noise[4 * 2 * 2], fibre[3 * 16 * 16];
  } input{};
  std::memcpy(&input, data, std::min(size, sizeof input));
  static csg_edge::Manifest manifest = [] {
    csg_edge::Manifest made;
    made.name = "fuzz";
    made.image_size = {8, 8};
    made.noise_shape = {4, 2, 2};
    made.fibre = true;
    made.labels = {"a", "b", "c"};
    return made;
  }();
  static csg_edge::OpenEngine engine(manifest, std::make_unique<Stand>());
  // Rows as far apart as they say, in memory of exactly that size.
  const auto room = [](int16_t stride) {
    const size_t apart = stride == 0 ? 8 : size_t(std::abs(int(stride)));
    return std::vector<uint8_t>(7 * apart + 8, 1);
  };
  std::vector<uint8_t> mask = room(input.strides[0]), context = room(input.strides[1]), image = room(input.strides[2]);
  std::copy_n(input.mask, std::min(mask.size(), sizeof input.mask), mask.begin());
  const auto first = [](std::vector<uint8_t>& rows, int16_t stride) { return rows.data() + (stride < 0 ? rows.size() - 8 : 0); };
  csg_edge::Cancellation cancellation;
  csg_edge::Job job;
  if (input.there & 1) job.mask = first(mask, input.strides[0]);
  if (input.there & 2) job.context = first(context, input.strides[1]);
  if (input.there & 4) job.image = first(image, input.strides[2]);
  if (input.there & 8) job.noise = input.noise;
  if (input.there & 16) job.fibre = input.fibre;
  std::vector<float> used(3 * 16 * 16);
  if (input.there & 32) job.fibre_used = used.data();
  if (input.there & 64) job.cancellation = &cancellation;
  if (input.there & 128) cancellation.trigger();
  job.mask_stride = input.strides[0];
  job.context_stride = input.strides[1];
  job.image_stride = input.strides[2];
  job.seed = input.seed;
  job.timeout_ms = input.timeout;
  try {
    engine.make(job);
  } catch (const csg_edge::Failure&) {
  }
  return 0;
}
