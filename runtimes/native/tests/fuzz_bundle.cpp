// libFuzzer: a bundle folder with any manifest, the digest right, and files of any content is read or refused. What is in
// it is read as golden cases. The input: manifest, a zero byte, then the bytes of every file that it names.
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "bundle.h"
#include "failure.h"
#include "golden.h"
#include "grey_png.h"

namespace fs = std::filesystem;

namespace {

fs::path folder() {
  static const fs::path found = [] {
    const fs::path path = fs::temp_directory_path() / ("csg-edge-fuzz-" + std::to_string(getpid()));
    fs::create_directories(path / "golden");
    static const fs::path kept = path;
    std::atexit([] { fs::remove_all(kept); });
    return path;
  }();
  return found;
}

void write(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view manifest = input.substr(0, end), content = input.substr(std::min(end + 1, input.size()));
  write(folder() / "manifest.json", manifest);
  write(folder() / "manifest.sha256", csg_edge::sha256_of(manifest) + "  manifest.json\n");
  write(folder() / "golden/a.png", content);
  try {
    const csg_edge::Bundle bundle = csg_edge::read_bundle(folder());
    for (const csg_edge::GoldenCase& one : bundle.manifest.golden) csg_edge::read_case(bundle, one, 1);
  } catch (const csg_edge::Failure&) {
  }
  try {
    csg_edge::read_grey_png(folder() / "golden/a.png", 16, 16);
  } catch (const csg_edge::Failure&) {
  }
  return 0;
}
