// The PNG files of a bundle's golden cases.
#pragma once

#include <cstdint>
#include <vector>

#include "files.h"

namespace csg_edge {

// An 8-bit grey image of exactly that size. Throws Failure (bad bundle).
std::vector<uint8_t> read_grey_png(const fs::path& path, int32_t height, int32_t width);

}  // namespace csg_edge
