/* generate.c: MASK.png CONTEXT.png OUT.png [--bundle B] [--seed S] [--steps N] [--precision P] [--threads N]
 *
 * Reads an 8-bit grey mask of class indices and an 8-bit grey context, both of the bundle's size, and writes the image
 * of the seed. What is said of the engine goes to stderr. Exit codes: 0 done, 2 wrong use or bad input.
 */
#include <csg_edge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "png_files.h"

static int failed(csg_edge_generator *generator, csg_edge_status status) {
  char text[1024] = "";
  csg_edge_last_error(generator, text, sizeof text);
  fprintf(stderr, "generate: %s\n", text[0] ? text : csg_edge_status_text(status));
  csg_edge_close(generator);
  return 2;
}

int main(int count, char **arguments) {
  const char *bundle = "msk-256";
  csg_edge_options options = CSG_EDGE_OPTIONS_INIT;
  csg_edge_job job = CSG_EDGE_JOB_INIT;
  if (count < 4 || count % 2 != 0) {
    fprintf(stderr, "usage: generate MASK.png CONTEXT.png OUT.png [--bundle B] [--seed S] [--steps N] [--precision P] [--threads N]\n");
    return 2;
  }
  for (int i = 4; i < count; i += 2) {
    const char *value = arguments[i + 1];
    if (strcmp(arguments[i], "--bundle") == 0) bundle = value;
    else if (strcmp(arguments[i], "--seed") == 0) job.seed = strtoull(value, NULL, 10);
    else if (strcmp(arguments[i], "--steps") == 0) options.steps = atoi(value);
    else if (strcmp(arguments[i], "--precision") == 0) options.precision = value;
    else if (strcmp(arguments[i], "--threads") == 0) options.threads = atoi(value);
    else {
      fprintf(stderr, "generate: %s is unknown; see the usage\n", arguments[i]);
      return 2;
    }
  }

  csg_edge_generator *generator = NULL;
  csg_edge_status status = csg_edge_open(bundle, &options, &generator);
  if (status != CSG_EDGE_OK) return failed(generator, status);
  fprintf(stderr, "%s\n", csg_edge_choice(generator));

  csg_edge_info info = CSG_EDGE_INFO_INIT;
  csg_edge_get_info(generator, &info);
  uint8_t *mask = read_png(arguments[1], info.height, info.width);
  uint8_t *context = read_png(arguments[2], info.height, info.width);
  uint8_t *image = malloc((size_t)info.height * (size_t)info.width);
  int code = 2;
  if (mask != NULL && context != NULL && image != NULL) {
    job.mask = mask;
    job.context = context;
    job.image = image;
    status = csg_edge_generate(generator, &job);
    if (status != CSG_EDGE_OK) {
      char text[1024];
      csg_edge_last_error(generator, text, sizeof text);
      fprintf(stderr, "generate: %s\n", text);
    } else if (write_png(arguments[3], image, info.height, info.width)) {
      code = 0;
    }
  }
  free(mask);
  free(context);
  free(image);
  csg_edge_close(generator);
  return code;
}
