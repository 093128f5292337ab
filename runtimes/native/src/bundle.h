// The bundle: a folder whose manifest names and hashes every file. What csg_edge/bundle/manifest.py does in Python.
//
// A manifest comes from outside. It is read within bounds (bytes, depth, number of values) and everything in it is
// checked before any file that it names is opened.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "files.h"

namespace csg_edge {

constexpr int kFibreSide = 16;
constexpr int kFibreChannels = 3;

// Where an engine runs: "openvino:CPU:int8".
struct Target {
  std::string runtime, device, precision;

  static Target parse(const std::string& text);
  std::string text() const { return runtime + ":" + device + ":" + precision; }
};

// What an engine may differ from the golden images. `key` is the text that stands for it in the key of a verdict.
struct Tolerance {
  int64_t levels = 0;
  double share = 0, psnr = 0;
  std::string key;
};

struct Engine {
  std::string target;
  int64_t steps = 0;
  std::string file;
  Tolerance tolerance;
  std::optional<int64_t> batch;
  std::string built_with;
};

struct GoldenCase {
  std::string name, mask, context;
  uint64_t seed = 0;
  std::map<std::string, std::string> expected;  // number of steps -> file
  std::optional<std::string> fibre, fibre_used;
};

struct Manifest {
  int format = 0;
  std::string name;
  std::array<int32_t, 2> image_size{};   // height, width
  std::array<int32_t, 3> noise_shape{};  // channels, height, width
  bool fibre = false;                    // whether graphs take a fibre field (3, 16, 16)
  std::vector<std::string> labels;
  std::vector<Engine> engines;  // in order of preference
  std::vector<GoldenCase> golden;
  std::map<std::string, FileEntry> files;

  size_t pixels() const { return size_t(image_size[0]) * size_t(image_size[1]); }
  size_t noise_values() const { return size_t(noise_shape[0]) * size_t(noise_shape[1]) * size_t(noise_shape[2]); }
  size_t fibre_values() const { return fibre ? size_t(kFibreChannels) * kFibreSide * kFibreSide : 0; }
};

struct Bundle {
  fs::path path;
  Manifest manifest;

  fs::path file(const std::string& name) const { return path / path_of(name); }
};

// The text of a manifest. `name` is what errors call it. Throws Failure (bad bundle).
Manifest parse_manifest(std::string_view text, const std::string& name);

// Read and check a bundle: format, keys, paths, sizes and hashes. Throws Failure (bad bundle).
Bundle read_bundle(const fs::path& path);

// The two files of a fibre field. Throws Failure (bad bundle) for another name.
std::pair<std::string, std::string> both_files(const std::string& direction);

}  // namespace csg_edge
