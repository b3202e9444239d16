/* program FOLDER: everything in moco.h, used rightly and wrongly. Exits with the line of the first surprise. */
#include <math.h>

#include "check.h"

static void *read_file(const char *path, size_t *len) {
  FILE *file = fopen(path, "rb");
  CHECK(file != NULL);
  CHECK(fseek(file, 0, SEEK_END) == 0);
  *len = (size_t)ftell(file);
  rewind(file);
  void *bytes = malloc(*len);
  CHECK(bytes != NULL && fread(bytes, 1, *len, file) == *len);
  fclose(file);
  return bytes;
}

static int n_messages = 0;
static void log_message(uint32_t level, const char *message, void *user) {
  CHECK(level >= MOCO_LOG_LEVEL_ERROR && level <= MOCO_LOG_LEVEL_DEBUG);
  CHECK(message[0] != '\0' && user == &n_messages);
  ++n_messages;
}

static int cancel_at(const moco_fit_progress *progress, void *user) {
  CHECK(progress->epoch <= progress->epochs);
  int *left = user;
  return --*left <= 0;
}

static void opening(const char *folder) {
  moco_backbone *backbone = (moco_backbone *)&n_messages;
  moco_backbone *const untouched = backbone;
  moco_backbone_options options = MOCO_BACKBONE_OPTIONS_INIT;
  const char *good = in(folder, "backbone.safetensors");
  FAILS(moco_backbone_open(NULL, NULL, &backbone), MOCO_CODE_INVALID_ARGUMENT, "`path` is NULL");
  FAILS(moco_backbone_open(good, NULL, NULL), MOCO_CODE_INVALID_ARGUMENT, "`out` is NULL");
  FAILS(moco_backbone_open("\xff", NULL, &backbone), MOCO_CODE_INVALID_ARGUMENT, "UTF-8");
  FAILS(moco_backbone_open(in(folder, "absent"), NULL, &backbone), MOCO_CODE_IO, "absent");
  FAILS(moco_backbone_open(in(folder, "truncated.safetensors"), NULL, &backbone), MOCO_CODE_FORMAT, "truncated");
  FAILS(moco_backbone_open(in(folder, "rubbish.safetensors"), NULL, &backbone), MOCO_CODE_FORMAT, "rubbish");
  options.taps = "pooled,c9";
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_INVALID_ARGUMENT, "c9");
  options.taps = NULL;
  options.struct_size = 0;
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_INVALID_ARGUMENT, "struct_size");
  options.struct_size = 1000000;
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_INVALID_ARGUMENT, "struct_size");
  CHECK(backbone == untouched);

  /* An older program knows fewer fields, a newer one more. */
  options.struct_size = sizeof(size_t) + sizeof(char *);
  options.taps = "c5";
  options.threads = 4000000000u;
  OK(moco_backbone_open(good, &options, &backbone));
  moco_backbone_free(backbone);
  struct {
    moco_backbone_options known;
    uint64_t unknown;
  } newer = {MOCO_BACKBONE_OPTIONS_INIT, 77};
  newer.known.struct_size = sizeof newer;
  OK(moco_backbone_open(good, &newer.known, &backbone));
  moco_backbone_free(backbone);
  options.struct_size = sizeof options;
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_INVALID_ARGUMENT, "threads");
  options.threads = 0;
  options.calibration = in(folder, "absent.json");
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_IO, "absent.json");
  options.calibration = in(folder, "rubbish.safetensors");
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_FORMAT, "moco-infer calibrate");
  options.calibration = in(folder, "foreign.json");
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_FORMAT, "another backbone");
  options.calibration = NULL;
  options.ort_library = in(folder, "rubbish.safetensors");
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_RUNTIME, "rubbish");
  options.ort_library = NULL;
  options.channels = 4000000000u;
  FAILS(moco_backbone_open(good, &options, &backbone), MOCO_CODE_FORMAT, "4000000000 channels");
}

/* In int8 features are close to those in f32, and not the same. */
static void calibrated(const char *folder) {
  moco_backbone_options options = MOCO_BACKBONE_OPTIONS_INIT;
  moco_backbone *backbone = NULL;
  moco_features *features = NULL;
  size_t len = 0;
  float *expected = read_file(in(folder, "expected.f32"), &len);
  const char *path = in(folder, "0.jpg");
  options.calibration = in(folder, "int8.json");
  OK(moco_backbone_open(in(folder, "backbone.safetensors"), &options, &backbone));
  OK(moco_backbone_extract_paths(backbone, &path, 1, &features));
  const size_t dim = len / sizeof(float) / 4;
  float *got = malloc(dim * sizeof(float));
  OK(moco_features_copy(features, 0, got, dim));
  double error = 0, norm = 0;
  for (size_t i = 0; i < dim; ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  CHECK(error > 0 && error < 0.05 * 0.05 * norm);
  free(got);
  free(expected);
  moco_features_free(features);
  moco_backbone_free(backbone);
}

static void extracting(const char *folder, const moco_backbone *backbone) {
  size_t expected_len = 0, len = 0, shape[4], dims = 0, dim = 0;
  float *expected = read_file(in(folder, "expected.f32"), &expected_len);
  const size_t n = 4;
  dim = expected_len / sizeof(float) / n;
  const char *paths[4];
  moco_bytes files[4];
  for (size_t i = 0; i < n; ++i) {
    char name[] = "0.jpg";
    name[0] = (char)('0' + i);
    paths[i] = in(folder, name);
    files[i].data = read_file(paths[i], &files[i].len);
  }

  moco_features *features = NULL;
  OK(moco_backbone_extract_paths(backbone, paths, n, &features));
  CHECK(moco_features_images(features) == n && moco_features_taps(features) == 2);
  CHECK(strcmp(moco_features_tap_name(features, 0), "pooled") == 0);
  CHECK(moco_features_tap_name(features, 2) == NULL);
  OK(moco_features_shape(features, 0, &shape, &dims));
  CHECK(dims == 2 && shape[0] == n && shape[1] == dim && shape[2] == 1 && shape[3] == 1);
  OK(moco_features_shape(features, 1, &shape, NULL));
  CHECK(shape[1] == 8 && shape[2] == 32 && shape[3] == 32);
  FAILS(moco_features_shape(features, 2, &shape, &dims), MOCO_CODE_INVALID_ARGUMENT, "2 taps");
  CHECK(memcmp(moco_features_data(features, 0, &len), expected, expected_len) == 0 && len == n * dim);
  float *copy = malloc(expected_len);
  OK(moco_features_copy(features, 0, copy, len));
  CHECK(memcmp(copy, expected, expected_len) == 0);
  FAILS(moco_features_copy(features, 0, copy, len - 1), MOCO_CODE_INVALID_ARGUMENT, "`out_len`");
  FAILS(moco_features_copy(features, 0, NULL, len), MOCO_CODE_INVALID_ARGUMENT, "`out` is NULL");
  moco_features_free(features);

  OK(moco_backbone_extract_encoded(backbone, files, n, &features));
  CHECK(memcmp(moco_features_data(features, 0, NULL), expected, expected_len) == 0);
  moco_features_free(features);
  OK(moco_backbone_extract_encoded(backbone, NULL, 0, &features));
  CHECK(moco_features_images(features) == 0 && moco_features_data(features, 0, &len) == NULL && len == 0);
  moco_features_free(features);

  const char *some_bad[3] = {paths[0], in(folder, "broken.jpg"), in(folder, "absent.jpg")};
  FAILS(moco_backbone_extract_paths(backbone, some_bad, 3, &features), MOCO_CODE_IMAGE, "broken.jpg");
  FAILS(moco_backbone_extract_paths(backbone, some_bad + 2, 1, &features), MOCO_CODE_IO, "absent.jpg");
  some_bad[1] = NULL;
  FAILS(moco_backbone_extract_paths(backbone, some_bad, 3, &features), MOCO_CODE_INVALID_ARGUMENT, "paths[1]");
  FAILS(moco_backbone_extract_paths(NULL, paths, n, &features), MOCO_CODE_INVALID_ARGUMENT, "`backbone`");
  FAILS(moco_backbone_extract_encoded(backbone, NULL, n, &features), MOCO_CODE_INVALID_ARGUMENT, "`images`");
  files[1].len = 100;
  FAILS(moco_backbone_extract_encoded(backbone, files, n, &features), MOCO_CODE_IMAGE, "");
  for (size_t i = 0; i < n; ++i) free((void *)files[i].data);
  free(copy);
  free(expected);
}

enum { SIDE = 40, N = 12 };

/* The same pictures as bytes, with a gap behind each row, as 12-bit values and as floats. */
static void pixels_of_all_types(const moco_backbone *backbone) {
  static uint8_t bytes[SIDE][SIDE * 3 + 5];
  static uint16_t words[SIDE][SIDE * 3];
  static float floats[SIDE][SIDE * 3];
  for (int y = 0; y < SIDE; ++y) {
    for (int x = 0; x < SIDE * 3; ++x) {
      bytes[y][x] = (uint8_t)((x * 7 + y * 13) % 256);
      words[y][x] = (uint16_t)(1000 + 10 * bytes[y][x]);
      floats[y][x] = (float)bytes[y][x] / 255.0f;
    }
  }
  moco_pixels pixels[3] = {
      {bytes, sizeof bytes[0], SIDE, SIDE, 3, MOCO_PIXEL_TYPE_U8, 0, 0},
      {words, 0, SIDE, SIDE, 3, MOCO_PIXEL_TYPE_U16, 1000, 3550},
      {floats, sizeof floats[0], SIDE, SIDE, 3, MOCO_PIXEL_TYPE_F32, 0, 1},
  };
  moco_features *features = NULL;
  OK(moco_backbone_extract_pixels(backbone, pixels, 3, &features));
  size_t len = 0;
  const float *rows = moco_features_data(features, 0, &len);
  CHECK(memcmp(rows, rows + len / 3, len / 3 * sizeof(float)) == 0);
  CHECK(memcmp(rows, rows + len / 3 * 2, len / 3 * sizeof(float)) == 0);
  moco_features_free(features);

  pixels[1].white = pixels[1].black = 0;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 3, &features), MOCO_CODE_IMAGE, "image 1: the image has 16 bits");
  pixels[1].type = 9;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 3, &features), MOCO_CODE_INVALID_ARGUMENT, "type` is 9");
  pixels[1] = pixels[2];
  pixels[1].type = MOCO_PIXEL_TYPE_U16 | MOCO_PIXEL_BITS(17);
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 2, &features), MOCO_CODE_INVALID_ARGUMENT, "17 in values of 16");
  pixels[1] = pixels[0];
  pixels[1].row_stride = 3;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 2, &features), MOCO_CODE_INVALID_ARGUMENT, "stride");
  pixels[1].row_stride = 0;
  pixels[1].data = NULL;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 2, &features), MOCO_CODE_INVALID_ARGUMENT, "pixels[1].data");
  pixels[1].height = 0;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 2, &features), MOCO_CODE_INVALID_ARGUMENT, "no pixels");
  pixels[1] = pixels[0];
  pixels[1].channels = 2;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 2, &features), MOCO_CODE_IMAGE, "2 channel");
}

/* A backbone whose card maps all that 12 bits hold has to be told that there are 12. */
static void bits_and_inversion(const char *folder) {
  static uint16_t values[SIDE][SIDE * 3], turned[SIDE][SIDE * 3];
  for (int y = 0; y < SIDE; ++y) {
    for (int x = 0; x < SIDE * 3; ++x) {
      values[y][x] = (uint16_t)((x * 97 + y * 131) % 4096);
      turned[y][x] = (uint16_t)(4095 - values[y][x]);
    }
  }
  const uint32_t twelve = MOCO_PIXEL_TYPE_U16 | MOCO_PIXEL_BITS(12);
  moco_pixels pixels[2] = {
      {values, 0, SIDE, SIDE, 3, twelve, 0, 0},
      {turned, 0, SIDE, SIDE, 3, twelve | MOCO_PIXEL_INVERTED, 0, 0},
  };
  moco_backbone *backbone = NULL;
  moco_features *features = NULL;
  OK(moco_backbone_open(in(folder, "twelve_bits.safetensors"), NULL, &backbone));
  OK(moco_backbone_extract_pixels(backbone, pixels, 2, &features));
  size_t len = 0;
  const float *rows = moco_features_data(features, 0, &len);
  for (size_t i = 0; i < len / 2; ++i) CHECK(fabsf(rows[i] - rows[len / 2 + i]) <= 1e-5f * (1.0f + fabsf(rows[i])));
  CHECK(MOCO_PIXEL_TYPE_OF(pixels[1].type) == MOCO_PIXEL_TYPE_U16);
  moco_features_free(features);
  pixels[1].type = MOCO_PIXEL_TYPE_U16;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 2, &features), MOCO_CODE_IMAGE, "image 1: the image has 16 bits");
  values[3][4] = 4096;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 1, &features), MOCO_CODE_INVALID_ARGUMENT, "a value of 4096");
  pixels[0].type = MOCO_PIXEL_TYPE_F32 | MOCO_PIXEL_BITS(12);
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 1, &features), MOCO_CODE_INVALID_ARGUMENT, "12 in values of 32");
  pixels[0].type = twelve | 1u << 20;
  FAILS(moco_backbone_extract_pixels(backbone, pixels, 1, &features), MOCO_CODE_INVALID_ARGUMENT, "no moco_pixel_type");
  moco_backbone_free(backbone);
}

static void image_files(const char *folder, const moco_backbone *backbone) {
  moco_image *image = NULL;
  moco_frame *frame = NULL;
  moco_image_facts facts;
  moco_pixels pixels;
  OK(moco_image_open(in(folder, "mr.dcm"), &image));
  OK(moco_image_info(image, &facts));
  CHECK(facts.frames == 1 && facts.width == 64 && facts.height == 64 && facts.channels == 1 && facts.bits == 16);
  CHECK(strcmp(facts.modality, "MR") == 0);
  FAILS(moco_image_read(image, 1, &frame), MOCO_CODE_INVALID_ARGUMENT, "frame");
  OK(moco_image_read(image, 0, &frame));
  moco_image_free(image);
  OK(moco_frame_pixels(frame, &pixels));
  CHECK(pixels.type == MOCO_PIXEL_TYPE_I16 && pixels.black == -200.0f && pixels.white == 1399.0f);
  int least = 32767, most = -32768;
  for (int i = 0; i < 64 * 64; ++i) {
    int value = ((const int16_t *)pixels.data)[i];
    if (value < least) least = value;
    if (value > most) most = value;
  }
  CHECK(least == 127 && most == 2145);
  moco_features *features = NULL;
  OK(moco_backbone_extract_pixels(backbone, &pixels, 1, &features));
  moco_features_free(features);
  pixels.black = pixels.white = 0;
  FAILS(moco_backbone_extract_pixels(backbone, &pixels, 1, &features), MOCO_CODE_IMAGE, "16 bits");
  moco_frame_free(frame);

  OK(moco_image_open(in(folder, "volume.nii"), &image));
  OK(moco_image_info(image, &facts));
  CHECK(facts.frames == 60 && facts.width == 17 && facts.height == 21 && strcmp(facts.modality, "") == 0);
  OK(moco_image_read(image, 59, &frame));
  OK(moco_frame_pixels(frame, &pixels));
  CHECK(pixels.type == MOCO_PIXEL_TYPE_F32 && pixels.black == 0.0f && pixels.white == 0.0f);
  moco_frame_free(frame);
  moco_image_free(image);

  FAILS(moco_image_open(in(folder, "absent.dcm"), &image), MOCO_CODE_IO, "absent.dcm");
  FAILS(moco_image_open(in(folder, "rubbish.safetensors"), &image), MOCO_CODE_IMAGE, "rubbish");
  FAILS(moco_image_open(NULL, &image), MOCO_CODE_INVALID_ARGUMENT, "path");
  FAILS(moco_image_read(NULL, 0, &frame), MOCO_CODE_INVALID_ARGUMENT, "image");
  moco_image_free(NULL);
  moco_frame_free(NULL);
}

static void heads(const char *folder, const moco_backbone *backbone) {
  static uint8_t dark[N][SIDE * SIDE * 3];
  moco_pixels pixels[N];
  uint32_t labels[N], predicted[N];
  float probabilities[N * 2], again[N * 2];
  for (int i = 0; i < N; ++i) {
    labels[i] = (uint32_t)(i % 2);
    for (int j = 0; j < SIDE * SIDE * 3; ++j) dark[i][j] = (uint8_t)((j * (i + 3)) % 60 + 150 * (i % 2));
    moco_pixels p = {dark[i], 0, SIDE, SIDE, 3, MOCO_PIXEL_TYPE_U8, 0, 0};
    pixels[i] = p;
  }
  const char *names[2] = {"dark", "light"};
  moco_fit_options options = MOCO_FIT_OPTIONS_INIT;
  options.class_names = names;
  options.epochs = 30;
  moco_head *head = NULL, *opened = NULL;
  OK(moco_head_fit_pixels(backbone, pixels, labels, N, 2, &options, &head));
  CHECK(moco_head_classes(head) == 2 && strcmp(moco_head_tap(head), "pooled") == 0);
  CHECK(strcmp(moco_head_class_name(head, 1), "light") == 0 && moco_head_class_name(head, 2) == NULL);
  OK(moco_head_predict_pixels(head, backbone, pixels, N, probabilities, N * 2, predicted, N));
  CHECK(memcmp(predicted, labels, sizeof labels) == 0);
  for (int i = 0; i < N; ++i) CHECK(fabsf(probabilities[2 * i] + probabilities[2 * i + 1] - 1.0f) < 1e-5f);

  const char *path = in(folder, "head.safetensors");
  OK(moco_head_save(head, path));
  OK(moco_head_open(path, &opened));
  moco_features *features = NULL;
  OK(moco_backbone_extract_pixels(backbone, pixels, N, &features));
  const size_t dim = moco_head_dim(opened);
  const float *rows = moco_features_data(features, 0, NULL);
  OK(moco_head_predict(opened, rows, N, dim, again, N * 2, NULL, 0));
  CHECK(memcmp(probabilities, again, sizeof again) == 0);
  OK(moco_head_predict(opened, NULL, 0, dim, NULL, 0, NULL, 0));
  memset(again, 0, sizeof again);
  OK(moco_head_predict_features(opened, features, 0, again, N * 2, predicted, N));
  CHECK(memcmp(probabilities, again, sizeof again) == 0 && memcmp(predicted, labels, sizeof labels) == 0);
  FAILS(moco_head_predict_features(opened, features, 1, again, N * 2, NULL, 0), MOCO_CODE_INVALID_ARGUMENT, "tap `pooled`");
  FAILS(moco_head_predict_features(opened, features, 2, again, N * 2, NULL, 0), MOCO_CODE_INVALID_ARGUMENT, "2 taps");
  FAILS(moco_head_predict_features(opened, NULL, 0, again, N * 2, NULL, 0), MOCO_CODE_INVALID_ARGUMENT, "`features`");
  FAILS(moco_head_predict_features(opened, features, 0, again, 1, NULL, 0), MOCO_CODE_INVALID_ARGUMENT, "probabilities_len");
  moco_head_free(opened);

  predicted[0] = 99;
  FAILS(moco_head_predict(head, rows, N, dim + 1, again, N * 2, predicted, N), MOCO_CODE_INVALID_ARGUMENT, "`dim`");
  FAILS(moco_head_predict(head, rows, N, dim, again, 3, predicted, N), MOCO_CODE_INVALID_ARGUMENT, "probabilities_len");
  FAILS(moco_head_predict(head, rows, N, dim, again, N * 2, predicted, 1), MOCO_CODE_INVALID_ARGUMENT, "labels_len");
  FAILS(moco_head_predict(head, NULL, N, dim, again, N * 2, predicted, N), MOCO_CODE_INVALID_ARGUMENT, "`features`");
  FAILS(moco_head_predict(NULL, rows, N, dim, again, N * 2, predicted, N), MOCO_CODE_INVALID_ARGUMENT, "`head`");
  CHECK(predicted[0] == 99);
  FAILS(moco_head_save(head, in(folder, "absent/head")), MOCO_CODE_IO, "absent");
  moco_head_free(head);

  FAILS(moco_head_open(in(folder, "backbone.safetensors"), &head), MOCO_CODE_FORMAT, "not a head");
  FAILS(moco_head_open(in(folder, "absent"), &head), MOCO_CODE_IO, "absent");
  int left = 3;
  options.progress = cancel_at;
  options.user = &left;
  FAILS(moco_head_fit_features(features, 0, labels, N, 2, &options, &head), MOCO_CODE_CANCELLED, "cancelled");
  CHECK(left == 0);
  options.progress = NULL;
  FAILS(moco_head_fit_features(features, 0, labels, N - 1, 2, &options, &head), MOCO_CODE_INVALID_ARGUMENT, "`n`");
  FAILS(moco_head_fit_features(features, 7, labels, N, 2, &options, &head), MOCO_CODE_INVALID_ARGUMENT, "`tap`");
  labels[4] = 2;
  FAILS(moco_head_fit_features(features, 0, labels, N, 2, &options, &head), MOCO_CODE_INVALID_ARGUMENT, "label 4");
  labels[4] = 0;
  names[1] = NULL;
  FAILS(moco_head_fit_features(features, 0, labels, N, 2, &options, &head), MOCO_CODE_INVALID_ARGUMENT, "class_names[1]");
  names[1] = "light";
  options.learning_rate = -1.0f;
  FAILS(moco_head_fit_features(features, 0, labels, N, 2, &options, &head), MOCO_CODE_INVALID_ARGUMENT, "learning_rate");
  options.learning_rate = 0.1f;
  OK(moco_head_fit(rows, N, dim, labels, 2, &options, &head));
  CHECK(strcmp(moco_head_tap(head), "") == 0);
  moco_head_free(head);
  FAILS(moco_head_fit(rows, (size_t)-1, dim, labels, 2, &options, &head), MOCO_CODE_INVALID_ARGUMENT, "impossible");
  moco_features_free(features);
}

/* Made for grey images, a backbone answers them as it answers the same images in colour; its features are others'. */
static void for_other_channels(const char *folder, const moco_backbone *rgb) {
  static uint8_t colour[SIDE * SIDE * 3], grey[SIDE * SIDE], five[SIDE * SIDE * 5];
  for (int i = 0; i < SIDE * SIDE; ++i) {
    grey[i] = (uint8_t)(i * 7 % 251);
    for (int c = 0; c < 3; ++c) colour[i * 3 + c] = grey[i];
    for (int c = 0; c < 5; ++c) five[i * 5 + c] = grey[i];
  }
  const moco_pixels as_grey = {grey, 0, SIDE, SIDE, 1, MOCO_PIXEL_TYPE_U8, 0, 0};
  const moco_pixels as_colour = {colour, 0, SIDE, SIDE, 3, MOCO_PIXEL_TYPE_U8, 0, 0};
  const moco_pixels as_five = {five, 0, SIDE, SIDE, 5, MOCO_PIXEL_TYPE_U8, 0, 0};
  moco_features *expected = NULL, *features = NULL;
  moco_head *head = NULL;
  size_t dim = 0;
  OK(moco_backbone_extract_pixels(rgb, &as_colour, 1, &expected));
  const float *want = moco_features_data(expected, 0, &dim);

  moco_backbone_options options = MOCO_BACKBONE_OPTIONS_INIT;
  moco_backbone *backbone = NULL;
  for (uint32_t channels = 1; channels <= 5; channels += 4) {
    options.channels = channels;
    OK(moco_backbone_open(folder, &options, &backbone));
    const char *note = channels == 1 ? "for 1 channels instead of 3" : "for 5 channels instead of 3";
    CHECK(strstr(moco_backbone_card(backbone), note) != NULL);
    OK(moco_backbone_extract_pixels(backbone, channels == 1 ? &as_grey : &as_five, 1, &features));
    const float *got = moco_features_data(features, 0, NULL);
    double error = 0, norm = 0;
    for (size_t i = 0; i < dim; ++i) {
      error += (got[i] - want[i]) * (got[i] - want[i]);
      norm += want[i] * want[i];
    }
    /* The mean and the deviation of the channels became one, so only nearly. */
    CHECK(norm > 0 && error < 0.05 * 0.05 * norm);
    FAILS(moco_backbone_extract_pixels(backbone, channels == 1 ? &as_five : &as_grey, 1, &expected), MOCO_CODE_IMAGE,
          "`channels`");
    const uint32_t labels[1] = {0};
    moco_fit_options fit = MOCO_FIT_OPTIONS_INIT;
    fit.epochs = 1;
    fit.learning_rate = 0.1f;
    OK(moco_head_fit_features(features, 0, labels, 1, 2, &fit, &head));
    float probabilities[2];
    FAILS(moco_head_predict_pixels(head, rgb, &as_colour, 1, probabilities, 2, NULL, 0), MOCO_CODE_INVALID_ARGUMENT,
          "backbone");
    moco_head_free(head);
    moco_features_free(features);
    moco_backbone_free(backbone);
  }
  moco_features_free(expected);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", MOCO_VERSION_MAJOR, MOCO_VERSION_MINOR, MOCO_VERSION_PATCH);
  CHECK(strcmp(version, moco_version()) == 0 && moco_abi_version() == MOCO_ABI_VERSION);
  moco_log_set(log_message, &n_messages);
  opening(argv[1]);
  CHECK(n_messages > 0);
  moco_log_set(NULL, NULL);

  moco_backbone_options options = MOCO_BACKBONE_OPTIONS_INIT;
  moco_backbone *backbone = NULL;
  size_t dim = 0;
  options.taps = "pooled, c1";
  OK(moco_backbone_open(argv[1], &options, &backbone));
  CHECK(strcmp(moco_backbone_arch(backbone), "resnet18") == 0 && strcmp(moco_backbone_method(backbone), "random") == 0);
  CHECK(strstr(moco_backbone_card(backbone), "\"preprocess\"") != NULL);
  CHECK(moco_backbone_taps(backbone) == 6 && strcmp(moco_backbone_tap_name(backbone, 0), "c1") == 0);
  CHECK(moco_backbone_tap_name(backbone, 6) == NULL);
  OK(moco_backbone_tap_dim(backbone, "pooled", &dim));
  CHECK(dim == 64);
  FAILS(moco_backbone_tap_dim(backbone, "c0", &dim), MOCO_CODE_INVALID_ARGUMENT, "c1, c2");
  extracting(argv[1], backbone);
  calibrated(argv[1]);
  pixels_of_all_types(backbone);
  bits_and_inversion(argv[1]);
  image_files(argv[1], backbone);
  heads(argv[1], backbone);
  for_other_channels(argv[1], backbone);
  moco_backbone_free(backbone);

  moco_error_free(NULL);
  moco_backbone_free(NULL);
  moco_features_free(NULL);
  moco_head_free(NULL);
  CHECK(moco_error_code(NULL) == MOCO_CODE_OK && moco_error_message(NULL)[0] == '\0');
  CHECK(moco_backbone_arch(NULL) == NULL && moco_features_images(NULL) == 0 && moco_head_dim(NULL) == 0);
  return 0;
}
