/* verify.c: BUNDLE [PRECISION]: does an engine of the bundle make its golden images on this machine?
 *
 * Exit codes: 0 it does, 1 it does not, 2 it could not be opened.
 */
#include <csg_edge.h>
#include <stdio.h>

static int report(csg_edge_generator *generator, int code) {
  char text[1024];
  csg_edge_last_error(generator, text, sizeof text);
  fprintf(stderr, "verify: %s\n", text);
  csg_edge_close(generator);
  return code;
}

int main(int count, char **arguments) {
  if (count != 2 && count != 3) {
    fprintf(stderr, "usage: verify BUNDLE [PRECISION]\n");
    return 2;
  }
  csg_edge_options options = CSG_EDGE_OPTIONS_INIT;
  options.precision = count == 3 ? arguments[2] : NULL;
  csg_edge_generator *generator = NULL;
  if (csg_edge_open(arguments[1], &options, &generator) != CSG_EDGE_OK) return report(generator, 2);
  printf("libcsg_edge %s; %s\n", csg_edge_version(), csg_edge_choice(generator));
  csg_edge_verification found = CSG_EDGE_VERIFICATION_INIT;
  csg_edge_status status = csg_edge_verify(generator, &found);
  printf("%d of %d golden cases passed; at most %d grey levels off, PSNR at least %.1f dB\n", (int)found.passed,
         (int)found.cases, (int)found.max_levels, found.worst_psnr);
  if (status != CSG_EDGE_OK) return report(generator, 1);
  csg_edge_close(generator);
  return 0;
}
