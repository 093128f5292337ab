#include "bundle.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "failure.h"
#include "python_json.h"

namespace csg_edge {
namespace {

using Json = nlohmann::json;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kDigest = "manifest.sha256";
constexpr int kFormats[] = {2, 3};
// Far above what a bundle has: the shipped manifest is 18 kB, 9 levels deep, with some 700 values.
constexpr uint64_t kLargestManifest = uint64_t{4} << 20;
constexpr int kDeepest = 32;
constexpr size_t kMostValues = 100000;
constexpr int64_t kLargestSide = 4096;
const std::set<std::string> kPrecisions = {"fp32", "bf16", "fp16", "int8"};

std::string quoted(const std::string& text) { return "'" + text + "'"; }

// A value of the manifest with the words that errors use for it.
class Reader {
 public:
  Reader(const Json& value, std::string what) : value_(value), what_(std::move(what)) {}

  [[noreturn]] void wrong(const std::string& expected) const {
    std::string found = value_.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (found.size() > 40) found = found.substr(0, 37) + "...";
    bad_bundle(what_ + " is " + found + ", not " + expected + "; export the bundle again");
  }

  void keys(std::initializer_list<const char*> known) const {
    if (!value_.is_object()) wrong("an object");
    std::set<std::string> missing(known.begin(), known.end());
    for (const auto& [key, ignored] : value_.items()) {
      if (missing.erase(key) == 0 && !is_one_of(key, known)) {
        bad_bundle(what_ + ": unknown key " + quoted(key) + "; made by another csg-edge, export it again");
      }
    }
    if (!missing.empty()) {
      bad_bundle(what_ + ": no key " + quoted(*missing.begin()) + "; made by another csg-edge, export it again");
    }
  }

  Reader operator[](const std::string& key) const {
    if (!value_.is_object()) wrong("an object");
    const auto found = value_.find(key);
    if (found == value_.end()) bad_bundle(what_ + ": no key " + quoted(key) + "; export the bundle again");
    return Reader(*found, what_ + ", " + key);
  }

  bool null() const { return value_.is_null(); }

  std::string text() const {
    if (!value_.is_string()) wrong("text");
    std::string found = value_.get<std::string>();
    if (found.find('\0') != std::string::npos) wrong("text without zero bytes");
    return found;
  }

  int64_t integer(int64_t least, int64_t most) const {
    const bool fits = value_.is_number_unsigned() ? value_.get<uint64_t>() <= uint64_t(std::numeric_limits<int64_t>::max())
                                                  : value_.is_number_integer();
    if (!fits || value_.get<int64_t>() < least || value_.get<int64_t>() > most) {
      wrong("an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value_.get<int64_t>();
  }

  uint64_t natural() const {
    if (!value_.is_number_unsigned()) wrong("an integer from 0 to 2^64-1");
    return value_.get<uint64_t>();
  }

  double number() const {
    if (!value_.is_number()) wrong("a number");
    return value_.get<double>();
  }

  template <size_t N>
  std::array<int32_t, N> sizes() const {
    if (!value_.is_array() || value_.size() != N) wrong(std::to_string(N) + " positive integers");
    std::array<int32_t, N> found{};
    for (size_t i = 0; i < N; ++i) found[i] = int32_t(Reader(value_[i], what_).integer(1, kLargestSide));
    return found;
  }

  std::vector<Reader> list() const {
    if (!value_.is_array()) wrong("a list");
    std::vector<Reader> found;
    for (const Json& item : value_) found.emplace_back(item, what_);
    return found;
  }

  std::vector<std::pair<std::string, Reader>> members() const {
    if (!value_.is_object()) wrong("an object");
    std::vector<std::pair<std::string, Reader>> found;
    for (const auto& [key, item] : value_.items()) found.emplace_back(key, Reader(item, what_ + " " + quoted(key)));
    return found;
  }

  const Json& json() const { return value_; }

 private:
  static bool is_one_of(const std::string& key, std::initializer_list<const char*> known) {
    return std::any_of(known.begin(), known.end(), [&](const char* one) { return key == one; });
  }

  const Json& value_;
  std::string what_;
};

Json parse_json(std::string_view text, const std::string& name) {
  if (text.size() > kLargestManifest) bad_bundle(name + ": larger than a manifest is; do not use this bundle");
  size_t values = 0;
  const auto bounded = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest || ++values > kMostValues) bad_bundle(name + ": deeper or longer than a manifest is; do not use it");
    return true;
  };
  try {
    return Json::parse(text, bounded);
  } catch (const Json::exception&) {
    bad_bundle(name + ": damaged (not JSON); copy the bundle again");
  }
}

// A relative path with forward slashes that stays below the folder.
bool stays_inside(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.find_first_of("\\:") != std::string::npos) return false;
  size_t start = 0;
  bool any = false;
  while (start <= name.size()) {
    const size_t stop = std::min(name.find('/', start), name.size());
    const std::string part = name.substr(start, stop - start);
    if (part == "..") return false;
    any = any || (!part.empty() && part != ".");
    start = stop + 1;
  }
  return any;
}

Tolerance tolerance_of(const Reader& item) {
  item.keys({"levels", "share", "psnr"});
  Tolerance found;
  found.levels = item["levels"].integer(0, 1 << 30);
  found.share = item["share"].number();
  found.psnr = item["psnr"].number();
  found.key = python_json(Json::array({item["levels"].json(), item["share"].json(), item["psnr"].json()}));
  return found;
}

Engine engine_of(const Reader& item) {
  item.keys({"target", "steps", "file", "tolerance", "batch", "built_with", "state", "report"});
  Engine found;
  found.target = item["target"].text();
  Target::parse(found.target);
  found.steps = item["steps"].integer(1, 1 << 20);
  found.file = item["file"].text();
  found.tolerance = tolerance_of(item["tolerance"]);
  if (!item["batch"].null()) found.batch = item["batch"].integer(1, 1 << 20);
  found.built_with = item["built_with"].text();
  const std::string state = item["state"].text();
  if (state != "verified" && state != "unverified") item["state"].wrong("verified or unverified");
  if (!item["report"].json().is_object()) item["report"].wrong("an object");
  return found;
}

void check_graph(const Reader& item) {
  item.keys({"steps", "precision", "batch", "file", "error"});
  item["steps"].integer(1, 1 << 20);
  item["precision"].text();
  if (!item["batch"].null()) item["batch"].integer(1, 1 << 20);
  item["file"].text();
  if (!item["error"].json().is_object()) item["error"].wrong("an object");
}

GoldenCase golden_of(const Reader& item, int format) {
  if (format == 2) {
    item.keys({"name", "mask", "context", "seed", "expected"});
  } else {
    item.keys({"name", "mask", "context", "seed", "expected", "fibre", "fibre_used"});
  }
  GoldenCase found;
  found.name = item["name"].text();
  found.mask = item["mask"].text();
  found.context = item["context"].text();
  found.seed = item["seed"].natural();
  for (const auto& [steps, file] : item["expected"].members()) found.expected[steps] = file.text();
  if (format > 2) {
    if (!item["fibre"].null()) found.fibre = item["fibre"].text();
    if (!item["fibre_used"].null()) found.fibre_used = item["fibre_used"].text();
  }
  return found;
}

std::vector<std::string> labels_of(const Reader& item) {
  std::vector<std::string> found;
  for (const Reader& name : item.list()) found.push_back(name.text());
  const std::set<std::string> different(found.begin(), found.end());
  if (found.size() < 2 || found.size() > 255 || different.size() != found.size() || different.count("") != 0) {
    item.wrong("2 to 255 different names");
  }
  return found;
}

std::vector<std::string> files_of(const GoldenCase& one) {
  std::vector<std::string> found = {one.mask, one.context};
  for (const auto& [steps, file] : one.expected) found.push_back(file);
  for (const auto& field : {one.fibre, one.fibre_used}) {
    if (!field) continue;
    const auto [direction, coherence] = both_files(*field);
    found.push_back(direction);
    found.push_back(coherence);
  }
  return found;
}

void check_uses(const Manifest& manifest, const std::vector<std::string>& graphs) {
  std::vector<std::string> used = graphs;
  for (const Engine& engine : manifest.engines) used.push_back(engine.file);
  for (const GoldenCase& one : manifest.golden) {
    for (std::string& file : files_of(one)) used.push_back(std::move(file));
  }
  for (const std::string& name : used) {
    if (manifest.files.count(name) == 0) {
      bad_bundle(quoted(name) + " is used but not listed under files; export the bundle again");
    }
  }
  for (const Engine& engine : manifest.engines) {
    for (const GoldenCase& one : manifest.golden) {
      if (one.expected.count(std::to_string(engine.steps)) == 0) {
        bad_bundle("golden case " + quoted(one.name) + " has no image for steps " + std::to_string(engine.steps) +
                   "; export the bundle again");
      }
    }
  }
}

Manifest manifest_of(const Json& json) {
  const Reader top(json, "manifest");
  if (!json.is_object() || json.count("format") == 0 || !json["format"].is_number_integer() ||
      std::find(std::begin(kFormats), std::end(kFormats), json["format"].get<int64_t>()) == std::end(kFormats)) {
    const std::string found = json.is_object() && json.count("format") != 0 && json["format"].is_number_integer()
                                  ? json["format"].dump()
                                  : "unknown";
    bad_bundle("bundle format " + found + ", this library reads 2 and 3; export it again or update the library");
  }
  Manifest found;
  found.format = int(json["format"].get<int64_t>());
  if (found.format == 2) {
    top.keys({"format", "name", "producer", "image_size", "noise_shape", "labels", "graphs", "engines", "golden", "files",
              "export"});
  } else {
    top.keys({"format", "name", "producer", "image_size", "noise_shape", "labels", "graphs", "engines", "golden", "files",
              "export", "fibre_shape"});
    if (!top["fibre_shape"].null()) {
      found.fibre = top["fibre_shape"].sizes<3>() == std::array<int32_t, 3>{kFibreChannels, kFibreSide, kFibreSide};
      if (!found.fibre) top["fibre_shape"].wrong("[3, 16, 16]");
    }
  }
  found.name = top["name"].text();
  top["producer"].text();
  if (!top["export"].json().is_object()) top["export"].wrong("an object");
  found.image_size = top["image_size"].sizes<2>();
  found.noise_shape = top["noise_shape"].sizes<3>();
  found.labels = labels_of(top["labels"]);
  std::vector<std::string> graphs;
  for (const Reader& item : top["graphs"].list()) {
    check_graph(item);
    graphs.push_back(item["file"].text());
  }
  for (const Reader& item : top["engines"].list()) found.engines.push_back(engine_of(item));
  for (const Reader& item : top["golden"].list()) found.golden.push_back(golden_of(item, found.format));
  for (const auto& [file, item] : top["files"].members()) {
    if (!stays_inside(file)) bad_bundle("file " + quoted(file) + " leads outside the bundle; do not use this bundle");
    item.keys({"sha256", "size"});
    found.files[file] = FileEntry{item["sha256"].text(), item["size"].natural()};
  }
  check_uses(found, graphs);
  return found;
}

void check_file(const fs::path& root, const std::string& name, const FileEntry& entry) {
  const fs::path path = root / path_of(name);
  std::error_code error;
  if (!fs::is_regular_file(path, error)) bad_bundle(path.string() + ": missing from the bundle; copy the bundle again");
  const fs::path real = fs::canonical(path, error);
  if (error) bad_bundle(path.string() + ": cannot read (" + error.message() + "); check its permissions");
  const auto [end, ignored] = std::mismatch(root.begin(), root.end(), real.begin(), real.end());
  if (end != root.end()) bad_bundle(path.string() + ": leads outside the bundle; do not use this bundle");
  // A wrong size is seen before a byte is read.
  const bool sized = fs::file_size(path, error) == entry.size && !error;
  if (!sized || entry_of(path).sha256 != entry.sha256) {
    bad_bundle(path.string() + ": does not match its hash in manifest.json; the file is damaged, copy the bundle again");
  }
}

}  // namespace

Target Target::parse(const std::string& text) {
  const size_t first = text.find(':');
  const size_t second = first == std::string::npos ? first : text.find(':', first + 1);
  if (second != std::string::npos && text.find(':', second + 1) == std::string::npos) {
    Target found{text.substr(0, first), text.substr(first + 1, second - first - 1), text.substr(second + 1)};
    if (!found.runtime.empty() && !found.device.empty() && kPrecisions.count(found.precision) != 0) return found;
  }
  bad_bundle("target " + quoted(text) + ": not runtime:device:precision; export the bundle again");
}

std::pair<std::string, std::string> both_files(const std::string& direction) {
  static const std::string kSuffix = ".direction.png";
  if (direction.size() < kSuffix.size() ||
      direction.compare(direction.size() - kSuffix.size(), kSuffix.size(), kSuffix) != 0) {
    bad_bundle(quoted(direction) + ": a fibre field ends in .direction.png; export the bundle again");
  }
  return {direction, direction.substr(0, direction.size() - kSuffix.size()) + ".coherence.png"};
}

Manifest parse_manifest(std::string_view text, const std::string& name) {
  try {
    return manifest_of(parse_json(text, name));
  } catch (const Json::exception&) {  // every value is checked before it is taken, so this is a fault of ours
    bad_bundle(name + ": a value has the wrong type; export the bundle again");
  } catch (const Failure& failure) {
    const std::string said = failure.what();
    if (said.compare(0, name.size(), name) == 0) throw;
    bad_bundle(name + ": " + said);
  }
}

Bundle read_bundle(const fs::path& path) {
  std::error_code error;
  const fs::path root = fs::canonical(path, error);
  if (error || !fs::is_regular_file(root / kManifest, error)) {
    bad_bundle(path.string() + ": no bundle there (no manifest.json); give a bundle folder");
  }
  const fs::path manifest = root / kManifest, digest = root / kDigest;
  const std::string text = read_bytes(manifest, kLargestManifest);
  Bundle found{root, parse_manifest(text, manifest.string())};
  if (!fs::is_regular_file(digest, error)) bad_bundle(digest.string() + ": missing from the bundle; copy the bundle again");
  // As `sha256sum` writes it.
  if (read_bytes(digest, 4096) != sha256_of(text) + "  " + kManifest + "\n") {
    bad_bundle(manifest.string() + ": does not match manifest.sha256; damaged, copy the bundle again");
  }
  for (const auto& [name, entry] : found.manifest.files) check_file(root, name, entry);
  return found;
}

}  // namespace csg_edge
