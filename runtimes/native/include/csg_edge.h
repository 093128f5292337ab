/* csg_edge.h: images from a csg-edge bundle, without Python.
 *
 * A bundle is a folder made by `csg-edge export`. A generator is one engine of it, opened on this machine; it turns a
 * semantic mask, a context image and a seed into an ultrasound image. The same inputs give the same bytes as the Python
 * package does on the same engine and number of threads.
 *
 *     csg_edge_options options = CSG_EDGE_OPTIONS_INIT;
 *     csg_edge_generator *generator = NULL;
 *     if (csg_edge_open("msk-256", &options, &generator) != CSG_EDGE_OK) { ... csg_edge_last_error ... }
 *     csg_edge_job job = CSG_EDGE_JOB_INIT;
 *     job.mask = mask; job.context = context; job.seed = 7; job.image = image;
 *     csg_edge_status status = csg_edge_generate(generator, &job);
 *     csg_edge_close(generator);
 *
 * Threads: every function may be called from any thread at any time, but `csg_edge_close` and
 * `csg_edge_cancellation_destroy`, which end what they are given. Nothing is global, nothing is printed, no exception
 * leaves the library. Memory handed in stays the caller's; it is read or written during the call and never kept.
 *
 * The synthetic images are not for diagnosis.
 */
#ifndef CSG_EDGE_H
#define CSG_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(CSG_EDGE_BUILD)
#define CSG_EDGE_API __attribute__((visibility("default")))
#else
#define CSG_EDGE_API
#endif

/* Semantic versioning of the ABI: another major version is another library. */
#define CSG_EDGE_VERSION_MAJOR 1
#define CSG_EDGE_VERSION_MINOR 0
#define CSG_EDGE_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/* What a call came to. `csg_edge_last_error` says more, with the remedy. */
typedef int32_t csg_edge_status;
enum {
  CSG_EDGE_OK = 0,
  CSG_EDGE_INVALID_ARGUMENT = 1, /* an argument or option that the call or the bundle does not take */
  CSG_EDGE_BAD_BUNDLE = 2,       /* a bundle that is missing, damaged, forged or of another format */
  CSG_EDGE_UNAVAILABLE = 3,      /* no engine that fits can run here: a runtime or an instruction set is missing */
  CSG_EDGE_ENGINE_FAILED = 4,    /* a runtime refused an engine or failed, or an engine's golden image is wrong here */
  CSG_EDGE_CANCELLED = 5,        /* the cancellation was triggered */
  CSG_EDGE_TIMED_OUT = 6,        /* the deadline passed */
  CSG_EDGE_TOO_LITTLE_MEMORY = 7, /* the memory ceiling is below what the engine needs, or memory ran out */
  CSG_EDGE_INTERNAL = 8          /* a fault of this library; please report it */
};

/* One engine of a bundle, opened. */
typedef struct csg_edge_generator csg_edge_generator;

/* Stops jobs from another thread. */
typedef struct csg_edge_cancellation csg_edge_cancellation;

typedef int32_t csg_edge_log_level;
enum { CSG_EDGE_LOG_DEBUG = 0, CSG_EDGE_LOG_INFO = 1, CSG_EDGE_LOG_WARNING = 2 };

/* Called with one line of UTF-8 text, on the thread that called the library. It must not call the library. */
typedef void (*csg_edge_log_callback)(csg_edge_log_level level, const char *text, void *data);

/* How to open a bundle. Zero everywhere but in `size` is the default. Fields are only ever added at the end. */
typedef struct csg_edge_options {
  size_t size;           /* sizeof(csg_edge_options) of the caller */
  const char *runtime;   /* openvino, onnxruntime; NULL or "auto": the first in the bundle's order that runs here */
  const char *device;    /* CPU, GPU, ...; NULL or "auto" */
  const char *precision; /* fp32, bf16, fp16, int8; NULL or "auto" */
  int32_t steps;         /* denoiser evaluations an image: what the bundle offers; 0: 1 */
  int32_t threads;       /* of the CPU; 0: what affinity and the container's processor quota allow */
  const char *cache;     /* folder for compiled engines and verdicts; NULL: the user's, shared with Python; "": none */
  uint64_t memory_limit; /* bytes that opening may add to the process, by estimate, checked before; 0: no limit */
  int32_t unproven;      /* 1: an engine is used though its golden image was not made here first */
  csg_edge_log_callback log; /* NULL: nothing is reported */
  void *log_data;            /* handed to `log` */
} csg_edge_options;
#define CSG_EDGE_OPTIONS_INIT {sizeof(csg_edge_options), NULL, NULL, NULL, 0, 0, NULL, 0, 0, NULL, NULL}

/* What an opened bundle takes and gives. Set `size` first. */
typedef struct csg_edge_info {
  size_t size;
  int32_t height, width;          /* of masks, contexts and images, pixels */
  int32_t noise_channels, noise_height, noise_width;
  int32_t fibre_channels, fibre_rows, fibre_columns; /* of fibre fields; 0: the bundle takes none */
  int32_t classes;                /* of masks */
  int32_t steps;                  /* denoiser evaluations an image */
  int32_t format;                 /* of the bundle */
  uint64_t memory_estimate;       /* bytes, as `memory_limit` counts them */
} csg_edge_info;
#define CSG_EDGE_INFO_INIT {sizeof(csg_edge_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* One image to make. Rows are `stride` bytes apart; 0: as wide as an image. */
typedef struct csg_edge_job {
  size_t size;           /* sizeof(csg_edge_job) of the caller */
  const uint8_t *mask;   /* class of each pixel, below `classes`, or 255 where nothing is said; NULL: no mask */
  ptrdiff_t mask_stride;
  const uint8_t *context; /* grey levels; NULL: no context */
  ptrdiff_t context_stride;
  uint64_t seed;         /* of the noise; not looked at where `noise` is given */
  const float *noise;    /* standard normal, (channels, height, width), finite; NULL: of the seed */
  const float *fibre;    /* fibre field (3, rows, columns): coherence x cos 2a, coherence x sin 2a, share given (0 to 1),
                            a the angle from the horizontal, positive rising to the right; NULL: the graph draws it */
  uint8_t *image;        /* where the image goes */
  ptrdiff_t image_stride;
  float *fibre_used;     /* where the fibre field goes that was used, as `fibre`; NULL: not wanted */
  uint32_t timeout_ms;   /* from the call on; 0: none. A runtime ends within a layer or, some, at the end of the image */
  csg_edge_cancellation *cancellation; /* NULL: none */
} csg_edge_job;
#define CSG_EDGE_JOB_INIT {sizeof(csg_edge_job), NULL, 0, NULL, 0, 0, NULL, NULL, NULL, 0, NULL, 0, NULL}

/* What `csg_edge_verify` found. Set `size` first. */
typedef struct csg_edge_verification {
  size_t size;
  int32_t cases, passed;   /* golden cases, and how many were within the engine's tolerance */
  int32_t max_levels;      /* the largest difference of a pixel from its expected image, grey levels */
  double worst_psnr;       /* dB, peak 255; infinite where every image is equal */
} csg_edge_verification;
#define CSG_EDGE_VERIFICATION_INIT {sizeof(csg_edge_verification), 0, 0, 0, 0.0}

/* "1.0.0": of the library that is loaded; the macros are of the header. */
CSG_EDGE_API const char *csg_edge_version(void);

/* A status in a few words. Never NULL. */
CSG_EDGE_API const char *csg_edge_status_text(csg_edge_status status);

/* Open a bundle folder: every file is checked against its hash, then the first engine is taken that fits the options,
 * runs here and makes its golden image here; int8 only where it is faster than the next in 16 or 32 bits. Verdicts and
 * compiled engines are kept in the cache, which Python shares. `bundle` is UTF-8.
 *
 * *generator is set in every case but for want of memory (NULL then): where the status is not CSG_EDGE_OK it only holds
 * the error's text. Close it in either case. */
CSG_EDGE_API csg_edge_status csg_edge_open(const char *bundle, const csg_edge_options *options,
                                           csg_edge_generator **generator);

/* Release everything. No other call on the handle may be under way or follow. NULL is fine. */
CSG_EDGE_API void csg_edge_close(csg_edge_generator *generator);

/* The sentence of the last call that failed on this handle, UTF-8; empty if none did. Copies at most `capacity` bytes,
 * the ending zero included, and returns the length of the whole sentence. Where several threads fail at once, the
 * sentence is that of one of them. */
CSG_EDGE_API size_t csg_edge_last_error(const csg_edge_generator *generator, char *text, size_t capacity);

/* Fill `info`. */
CSG_EDGE_API csg_edge_status csg_edge_get_info(csg_edge_generator *generator, csg_edge_info *info);

/* Name of a class of masks, `index` from 0; NULL beyond the last. Lives as long as the handle. */
CSG_EDGE_API const char *csg_edge_class_name(const csg_edge_generator *generator, int32_t index);

/* The engine in use, "openvino:CPU:int8", and why it was taken and others were not, as one line. Live as long as the
 * handle; empty where nothing is open. */
CSG_EDGE_API const char *csg_edge_engine(const csg_edge_generator *generator);
CSG_EDGE_API const char *csg_edge_choice(const csg_edge_generator *generator);

/* Make one image. Blocks until it is made, fails, is cancelled or times out; after a failure the contents of `image` are
 * unspecified. Calls from several threads run side by side. After as many images as there are threads no memory is
 * taken by this library. */
CSG_EDGE_API csg_edge_status csg_edge_generate(csg_edge_generator *generator, const csg_edge_job *job);

/* Make the image of every golden case and compare. CSG_EDGE_ENGINE_FAILED where one is beyond tolerance. */
CSG_EDGE_API csg_edge_status csg_edge_verify(csg_edge_generator *generator, csg_edge_verification *found);

/* The noise of a seed, as `csg_edge_generate` has it: `count` float32 values, of one Philox4x64-10 stream (Salmon et al.,
 * SC 2011) by Box-Muller in float64. */
CSG_EDGE_API void csg_edge_noise(uint64_t seed, float *values, size_t count);

/* A cancellation is triggered once for all jobs that carry it, running or to come, until it is reset. NULL for want of
 * memory. It must outlive the jobs. */
CSG_EDGE_API csg_edge_cancellation *csg_edge_cancellation_create(void);
CSG_EDGE_API void csg_edge_cancellation_trigger(csg_edge_cancellation *cancellation);
CSG_EDGE_API void csg_edge_cancellation_reset(csg_edge_cancellation *cancellation);
CSG_EDGE_API void csg_edge_cancellation_destroy(csg_edge_cancellation *cancellation);

#ifdef __cplusplus
}
#endif
#endif
