#include "grey_png.h"

#include <spng.h>

#include <memory>

#include "failure.h"

namespace csg_edge {
namespace {

constexpr uint64_t kLargest = uint64_t{64} << 20;
constexpr size_t kLargestChunk = size_t{1} << 20;

bool decode(const std::string& bytes, uint32_t height, uint32_t width, std::vector<uint8_t>& pixels) {
  const std::unique_ptr<spng_ctx, decltype(&spng_ctx_free)> png(spng_ctx_new(0), spng_ctx_free);
  if (png == nullptr) throw std::bad_alloc();
  spng_set_image_limits(png.get(), width, height);
  spng_set_chunk_limits(png.get(), kLargestChunk, kLargestChunk);
  spng_ihdr header{};
  size_t size = 0;
  return spng_set_png_buffer(png.get(), bytes.data(), bytes.size()) == 0 && spng_get_ihdr(png.get(), &header) == 0 &&
         header.width == width && header.height == height && header.bit_depth == 8 &&
         header.color_type == SPNG_COLOR_TYPE_GRAYSCALE &&
         spng_decoded_image_size(png.get(), SPNG_FMT_RAW, &size) == 0 && size == pixels.size() &&
         spng_decode_image(png.get(), pixels.data(), size, SPNG_FMT_RAW, 0) == 0;
}

}  // namespace

std::vector<uint8_t> read_grey_png(const fs::path& path, int32_t height, int32_t width) {
  const std::string bytes = read_bytes(path, kLargest);
  std::vector<uint8_t> pixels(size_t(height) * size_t(width));
  if (!decode(bytes, uint32_t(height), uint32_t(width), pixels)) {
    bad_bundle(path.string() + ": not an 8-bit grey PNG image of " + std::to_string(width) + " x " +
               std::to_string(height) + "; export the bundle again");
  }
  return pixels;
}

}  // namespace csg_edge
