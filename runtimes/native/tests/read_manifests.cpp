// read_manifests FILE...: one line for each, "read" or "refused" with the sentence. For tests that compare with Python.
#include <cstdio>

#include "bundle.h"
#include "failure.h"

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    try {
      csg_edge::parse_manifest(csg_edge::read_bytes(arguments[i], uint64_t{16} << 20), arguments[i]);
      std::puts("read");
    } catch (const csg_edge::Failure& failure) {
      std::printf("refused %s\n", failure.what());
    }
  }
}
