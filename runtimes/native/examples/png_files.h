/* 8-bit grey PNG files for the examples, by libspng. */
#ifndef PNG_FILES_H
#define PNG_FILES_H

#include <spng.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* An image of exactly that size, to be freed; NULL, with a line on stderr, for anything else. */
static uint8_t *read_png(const char *path, int32_t height, int32_t width) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    fprintf(stderr, "%s: cannot read; check the path\n", path);
    return NULL;
  }
  spng_ctx *png = spng_ctx_new(0);
  struct spng_ihdr header;
  uint8_t *pixels = NULL;
  size_t size = (size_t)height * (size_t)width;
  int fits = png != NULL && spng_set_png_file(png, file) == 0 && spng_get_ihdr(png, &header) == 0 &&
             header.width == (uint32_t)width && header.height == (uint32_t)height && header.bit_depth == 8 &&
             header.color_type == SPNG_COLOR_TYPE_GRAYSCALE && (pixels = (uint8_t *)malloc(size)) != NULL &&
             spng_decode_image(png, pixels, size, SPNG_FMT_RAW, 0) == 0;
  spng_ctx_free(png);
  fclose(file);
  if (fits) return pixels;
  free(pixels);
  fprintf(stderr, "%s: give an 8-bit grey PNG image of %d x %d\n", path, (int)width, (int)height);
  return NULL;
}

/* Whether it was written; a line on stderr if not. */
static int write_png(const char *path, const uint8_t *pixels, int32_t height, int32_t width) {
  FILE *file = fopen(path, "wb");
  spng_ctx *png = spng_ctx_new(SPNG_CTX_ENCODER);
  struct spng_ihdr header = {0};
  header.width = (uint32_t)width;
  header.height = (uint32_t)height;
  header.bit_depth = 8;
  header.color_type = SPNG_COLOR_TYPE_GRAYSCALE;
  int written = file != NULL && png != NULL && spng_set_png_file(png, file) == 0 && spng_set_ihdr(png, &header) == 0 &&
                spng_encode_image(png, pixels, (size_t)height * (size_t)width, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE) == 0;
  spng_ctx_free(png);
  if (file != NULL) written = fclose(file) == 0 && written;
  if (!written) fprintf(stderr, "%s: cannot write; choose another folder\n", path);
  return written;
}

#endif
