// libFuzzer: the text of a manifest is read or refused.
#include "bundle.h"
#include "failure.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    csg_edge::parse_manifest({reinterpret_cast<const char*>(data), size}, "manifest.json");
  } catch (const csg_edge::Failure&) {
  }
  return 0;
}
