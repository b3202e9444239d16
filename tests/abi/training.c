/* program FOLDER: sessions and models of moco.h, used rightly and wrongly. Exits with the line of the first surprise. */
#include <math.h>

#include "check.h"

enum { N = 8, SIDE = 32, CLASSES = 2 };

static const char *const NAMES[CLASSES] = {"dark", "light"};

/* Each image has a square; its class is how light it is. */
static uint8_t images[N][SIDE][SIDE * 3];
static uint8_t masks[N][SIDE][SIDE + 8];
static uint8_t labels[N][CLASSES];
static moco_box boxes[N][1];
static moco_sample samples[N];

static void draw(void) {
  for (int i = 0; i < N; ++i) {
    const int label = i % 2, x0 = 4 + i, y0 = 12 - i, side = 12;
    for (int y = 0; y < SIDE; ++y) {
      for (int x = 0; x < SIDE; ++x) {
        const int inside = x >= x0 && x < x0 + side && y >= y0 && y < y0 + side;
        for (int c = 0; c < 3; ++c) {
          images[i][y][x * 3 + c] = (uint8_t)((inside ? (label ? 230 : 20) : 120) + (x * 7 + y * 5 + c) % 20);
        }
        masks[i][y][x] = (uint8_t)(x == 0 ? 255 : inside);
      }
    }
    labels[i][label] = 1;
    const moco_box box = {(float)x0, (float)y0, (float)(x0 + side), (float)(y0 + side), (uint32_t)label, 0};
    boxes[i][0] = box;
    const moco_pixels pixels = {images[i], 0, SIDE, SIDE, 3, MOCO_PIXEL_TYPE_U8, 0, 0};
    const moco_target target = {labels[i], &masks[i][0][0], boxes[i], SIDE + 8, 1, (uint32_t)label, 0};
    samples[i].pixels = pixels;
    samples[i].target = target;
  }
}

/* How often the callbacks were called, and what they are to answer. */
typedef struct {
  int reads, releases, fail_at, fail_with;
  int steps, epochs, evaluated, cancel_after, best_seen;
} counts;

static int read_sample(size_t index, moco_sample *out, void *user) {
  counts *c = user;
  CHECK(index < N && out->pixels.data == NULL && out->target.boxes == NULL);
  if (++c->reads == c->fail_at) return c->fail_with;
  moco_sample *copy = malloc(sizeof *copy);
  CHECK(copy != NULL);
  *copy = samples[index];
  uint8_t *pixels = malloc(sizeof images[index]);
  CHECK(pixels != NULL);
  memcpy(pixels, images[index], sizeof images[index]);
  copy->pixels.data = pixels;
  *out = *copy;
  out->owner = copy;
  return 0;
}

static void release_sample(const moco_sample *sample, void *user) {
  ++((counts *)user)->releases;
  free((void *)((moco_sample *)sample->owner)->pixels.data);
  free(sample->owner);
}

static int told(const moco_session_progress *p, void *user) {
  counts *c = user;
  CHECK(p->steps == 0 || p->step <= p->steps);
  CHECK(p->epoch <= p->epochs || p->epochs == 0);
  switch (p->event) {
    case MOCO_SESSION_EVENT_STEP:
      CHECK(p->loss > 0 && p->learning_rate >= 0 && isnan(p->metric));
      return ++c->steps == c->cancel_after;
    case MOCO_SESSION_EVENT_EPOCH:
      ++c->epochs;
      if (!isnan(p->metric)) {
        CHECK(p->best_metric >= p->metric);
        c->best_seen = 1;
      }
      return 0;
    case MOCO_SESSION_EVENT_EVALUATED:
      CHECK(p->images <= p->images_total && isnan(p->loss));
      ++c->evaluated;
      return 0;
  }
  CHECK(!"an event of moco_session_event");
  return 1;
}

static moco_samples in_memory(void) {
  moco_samples given = MOCO_SAMPLES_INIT;
  given.len = N;
  given.samples = samples;
  return given;
}

static moco_samples through_callback(counts *c) {
  moco_samples given = MOCO_SAMPLES_INIT;
  given.len = N;
  given.read = read_sample;
  given.release = release_sample;
  given.user = c;
  return given;
}

static moco_session_options options_for(moco_task task, counts *c) {
  moco_session_options options = MOCO_SESSION_OPTIONS_INIT;
  options.task = task;
  options.classes = CLASSES;
  options.class_names = NAMES;
  options.height = SIDE;
  options.epochs = 2;
  options.batch = 4;
  options.seed = 7;
  options.device = "cpu";
  options.head = task == MOCO_TASK_SEGMENT ? "fpn:8" : task == MOCO_TASK_DETECT ? "fcos:width=8,convs=1,levels=3-4" : NULL;
  if (c != NULL) {
    options.progress = told;
    options.user = c;
  }
  return options;
}

/* Answers of a model about all images, as one array of bytes. */
static size_t answers(const moco_model *model, uint8_t *out, size_t room) {
  moco_pixels pixels[N];
  for (int i = 0; i < N; ++i) pixels[i] = samples[i].pixels;
  moco_prediction *prediction = NULL;
  OK(moco_model_predict(model, pixels, N, NULL, &prediction));
  CHECK(moco_prediction_images(prediction) == N);
  size_t used = 0;
  for (size_t i = 0; i < N; ++i) {
    size_t len = 0, width = 0, height = 0;
    const float *probabilities = moco_prediction_probabilities(prediction, i, &len);
    if (probabilities != NULL) {
      CHECK(len == CLASSES && used + len * sizeof(float) <= room);
      memcpy(out + used, probabilities, len * sizeof(float));
      used += len * sizeof(float);
    }
    const uint8_t *mask = moco_prediction_mask(prediction, i, &width, &height);
    if (mask != NULL) {
      CHECK(width == SIDE && height == SIDE && used + width * height <= room);
      memcpy(out + used, mask, width * height);
      used += width * height;
      const float *confidence = moco_prediction_confidence(prediction, i, &len);
      CHECK(len == width * height);
      for (size_t p = 0; p < len; ++p) CHECK(mask[p] < CLASSES && confidence[p] >= 0.49f && confidence[p] <= 1.0f);
    }
    const moco_detection *found = moco_prediction_detections(prediction, i, &len);
    if (found != NULL) {
      CHECK(used + len * sizeof *found <= room);
      for (size_t d = 0; d < len; ++d) {
        CHECK(found[d].x0 >= 0 && found[d].x1 <= SIDE && found[d].x0 < found[d].x1 && found[d].label < CLASSES);
        CHECK(found[d].score > 0 && (d == 0 || found[d].score <= found[d - 1].score));
      }
      memcpy(out + used, found, len * sizeof *found);
      used += len * sizeof *found;
    }
  }
  moco_prediction_free(prediction);
  return used;
}

static uint8_t first[1 << 20], second[1 << 20];

static void same_answers(const moco_model *one, const moco_model *other) {
  const size_t len = answers(one, first, sizeof first);
  CHECK(len == answers(other, second, sizeof second) && memcmp(first, second, len) == 0);
}

/* A whole life: opened, fitted, evaluated, saved, opened again, exported. */
static void trains(const char *folder, const char *place, moco_task task, const char *metric) {
  counts c = {0};
  moco_session_options options = options_for(task, &c);
  moco_session *session = NULL;
  moco_model *model = NULL, *opened = NULL;
  moco_metrics *metrics = NULL, *again = NULL;
  OK(moco_session_open(place, &options, &session));
  CHECK(moco_session_task(session) == (uint32_t)task && moco_session_classes(session) == CLASSES);
  moco_samples train = through_callback(&c), validation = in_memory();
  OK(moco_session_fit(session, &train, &validation));
  CHECK(c.steps == 4 && c.epochs == 2 && c.evaluated > 0 && c.best_seen);
  CHECK(c.reads > 0 && c.reads == c.releases);
  /* There is nothing left to do. */
  OK(moco_session_fit(session, &train, &validation));
  CHECK(c.steps == 4);

  OK(moco_session_evaluate(session, &validation, &metrics));
  CHECK(moco_metrics_images(metrics) == N && moco_metrics_len(metrics) > 0);
  CHECK(strcmp(moco_metrics_name(metrics, 0), metric) == 0);
  double value = -1;
  OK(moco_metrics_get(metrics, metric, &value));
  CHECK(value >= 0 && value <= 1 && value == moco_metrics_value(metrics, 0));
  FAILS(moco_metrics_get(metrics, "luck", &value), MOCO_CODE_INVALID_ARGUMENT, metric);
  CHECK(moco_metrics_name(metrics, 10000) == NULL && isnan(moco_metrics_value(metrics, 10000)));

  OK(moco_session_model(session, &model));
  moco_session_free(session);
  CHECK(moco_model_task(model) == (uint32_t)task && moco_model_classes(model) == CLASSES && moco_model_channels(model) == 3);
  CHECK(strcmp(moco_model_class_name(model, 1), "light") == 0 && moco_model_class_name(model, 2) == NULL);
  CHECK(strstr(moco_model_card(model), "resnet18") != NULL && strstr(moco_model_head(model), "\"light\"") != NULL);
  OK(moco_model_evaluate(model, &validation, NULL, &again));
  CHECK(moco_metrics_value(again, 0) == moco_metrics_value(metrics, 0));
  const char *path = in(folder, "model.safetensors");
  OK(moco_model_save(model, path));
  OK(moco_model_open(path, &opened));
  same_answers(model, opened);
  const char *onnx = in(folder, "model.onnx");
  OK(moco_model_export_onnx(opened, onnx));
  FILE *file = fopen(onnx, "rb");
  CHECK(file != NULL && fclose(file) == 0);
  FAILS(moco_model_save(model, in(folder, "absent/model")), MOCO_CODE_IO, "absent");
  moco_model_free(opened);
  moco_model_free(model);
  moco_metrics_free(metrics);
  moco_metrics_free(again);

  /* A model is a backbone, and a start, too. */
  moco_session_options more = options_for(task, NULL);
  more.epochs = 1;
  OK(moco_session_open(path, &more, &session));
  OK(moco_session_fit(session, &validation, NULL));
  moco_session_free(session);
}

static void predictions_know_their_task(const char *folder) {
  moco_model *model = NULL;
  moco_prediction *prediction = NULL;
  moco_predict_options options = MOCO_PREDICT_OPTIONS_INIT;
  uint32_t label = 99;
  /* The last task that was trained: detection. */
  OK(moco_model_open(in(folder, "model.safetensors"), &model));
  const char *paths[2] = {in(folder, "0.jpg"), in(folder, "1.jpg")};
  options.max_detections = 3;
  options.score = 0.0001f;
  options.batch = 1;
  OK(moco_model_predict_paths(model, paths, 2, &options, &prediction));
  size_t len = 0;
  (void)moco_prediction_detections(prediction, 1, &len);
  CHECK(moco_prediction_images(prediction) == 2 && len <= 3);
  CHECK(moco_prediction_mask(prediction, 0, NULL, NULL) == NULL && moco_prediction_probabilities(prediction, 0, NULL) == NULL);
  CHECK(moco_prediction_detections(prediction, 7, &len) == NULL && len == 0);
  FAILS(moco_prediction_label(prediction, 0, &label), MOCO_CODE_INVALID_ARGUMENT, "classifier");
  FAILS(moco_prediction_label(prediction, 2, &label), MOCO_CODE_INVALID_ARGUMENT, "2 images");
  moco_prediction_free(prediction);
  paths[1] = in(folder, "broken.jpg");
  FAILS(moco_model_predict_paths(model, paths, 2, NULL, &prediction), MOCO_CODE_IMAGE, "broken.jpg");
  paths[1] = in(folder, "volume.nii");
  FAILS(moco_model_predict_paths(model, paths, 2, NULL, &prediction), MOCO_CODE_INVALID_ARGUMENT, "60 images");
  moco_pixels pixels = samples[0].pixels;
  pixels.channels = 2;
  FAILS(moco_model_predict(model, &pixels, 1, NULL, &prediction), MOCO_CODE_IMAGE, "2 channel");
  options.score = 2;
  FAILS(moco_model_predict(model, &samples[0].pixels, 1, &options, &prediction), MOCO_CODE_INVALID_ARGUMENT, "score");
  options.score = 0;
  options.device = "abacus";
  FAILS(moco_model_predict(model, &samples[0].pixels, 1, &options, &prediction), MOCO_CODE_INVALID_ARGUMENT, "abacus");
  FAILS(moco_model_predict(NULL, &samples[0].pixels, 1, NULL, &prediction), MOCO_CODE_INVALID_ARGUMENT, "`model`");
  FAILS(moco_model_predict(model, NULL, 1, NULL, &prediction), MOCO_CODE_INVALID_ARGUMENT, "`pixels`");
  OK(moco_model_predict(model, NULL, 0, NULL, &prediction));
  CHECK(moco_prediction_images(prediction) == 0);
  moco_prediction_free(prediction);
  moco_model_free(model);
  FAILS(moco_model_open(in(folder, "backbone.safetensors"), &model), MOCO_CODE_FORMAT, "backbone.safetensors");
  FAILS(moco_model_open(in(folder, "absent"), &model), MOCO_CODE_IO, "absent");
  FAILS(moco_model_open(NULL, &model), MOCO_CODE_INVALID_ARGUMENT, "`path`");
}

/* What was cancelled goes on, in the same session or from a checkpoint, as if nothing had been. */
static void cancelled_and_resumed(const char *folder) {
  counts none = {0}, c = {0};
  moco_session_options options = options_for(MOCO_TASK_SEGMENT, &none);
  options.augment = "light";
  moco_samples train = in_memory();
  moco_session *whole = NULL, *session = NULL, *resumed = NULL;
  moco_model *expected = NULL, *model = NULL;
  OK(moco_session_open(in(folder, "backbone.safetensors"), &options, &whole));
  OK(moco_session_fit(whole, &train, NULL));
  OK(moco_session_model(whole, &expected));
  moco_session_free(whole);

  options.user = &c;
  c.cancel_after = 3;
  const char *checkpoint = in(folder, "checkpoint.safetensors");
  OK(moco_session_open(in(folder, "backbone.safetensors"), &options, &session));
  FAILS(moco_session_fit(session, &train, NULL), MOCO_CODE_CANCELLED, "cancelled");
  CHECK(c.steps == 3);
  OK(moco_session_checkpoint(session, checkpoint));
  FAILS(moco_session_checkpoint(session, in(folder, "absent/checkpoint")), MOCO_CODE_IO, "absent");
  /* A wish to cancel between two calls stops the next one. */
  moco_session_cancel(session);
  FAILS(moco_session_fit(session, &train, NULL), MOCO_CODE_CANCELLED, "cancelled");
  OK(moco_session_fit(session, &train, NULL));
  CHECK(c.steps == 4);
  OK(moco_session_model(session, &model));
  same_answers(expected, model);
  moco_model_free(model);

  OK(moco_session_resume(checkpoint, NULL, &resumed));
  CHECK(moco_session_task(resumed) == MOCO_TASK_SEGMENT);
  OK(moco_session_fit(resumed, &train, NULL));
  OK(moco_session_model(resumed, &model));
  same_answers(expected, model);
  moco_samples others = in_memory();
  others.len = N - 1;
  OK(moco_session_resume(checkpoint, NULL, &whole));
  FAILS(moco_session_fit(whole, &others, NULL), MOCO_CODE_INVALID_ARGUMENT, "8 images");
  moco_session_free(whole);
  moco_session_free(session);
  moco_session_free(resumed);
  moco_model_free(model);
  moco_model_free(expected);
  FAILS(moco_session_resume(in(folder, "backbone.safetensors"), NULL, &session), MOCO_CODE_FORMAT, "no checkpoint");
  FAILS(moco_session_resume(in(folder, "absent"), NULL, &session), MOCO_CODE_IO, "absent");
}

static void fed_batch_by_batch(const char *folder) {
  moco_session_options options = options_for(MOCO_TASK_DETECT, NULL);
  options.steps = 6;
  moco_pixels pixels[4];
  moco_target targets[4];
  for (int i = 0; i < 4; ++i) {
    pixels[i] = samples[i].pixels;
    targets[i] = samples[i].target;
  }
  moco_session *session = NULL;
  float loss = 0, start = 0;
  OK(moco_session_open(in(folder, "backbone.safetensors"), &options, &session));
  OK(moco_session_step(session, pixels, targets, 4, &start));
  for (int i = 0; i < 4; ++i) OK(moco_session_step(session, pixels, targets, 4, &loss));
  CHECK(start > 0 && loss > 0 && loss < start);
  FAILS(moco_session_step(session, pixels, targets, 0, NULL), MOCO_CODE_INVALID_ARGUMENT, "1 to 4");
  FAILS(moco_session_step(session, NULL, targets, 4, NULL), MOCO_CODE_INVALID_ARGUMENT, "`pixels`");
  FAILS(moco_session_step(session, pixels, NULL, 4, NULL), MOCO_CODE_INVALID_ARGUMENT, "`targets`");
  FAILS(moco_session_step(NULL, pixels, targets, 4, NULL), MOCO_CODE_INVALID_ARGUMENT, "`session`");
  moco_box box = boxes[1][0];
  targets[1].boxes = &box;
  box.x1 = box.x0;
  FAILS(moco_session_step(session, pixels, targets, 4, NULL), MOCO_CODE_INVALID_ARGUMENT, "targets[1].boxes[0]");
  box = boxes[1][0];
  box.label = 2;
  FAILS(moco_session_step(session, pixels, targets, 4, NULL), MOCO_CODE_INVALID_ARGUMENT, "label 2");
  box = boxes[1][0];
  box.flags = 2;
  FAILS(moco_session_step(session, pixels, targets, 4, NULL), MOCO_CODE_INVALID_ARGUMENT, "flags 0x2");
  box.flags = MOCO_BOX_IGNORED;
  targets[2].boxes = NULL;
  FAILS(moco_session_step(session, pixels, targets, 4, NULL), MOCO_CODE_INVALID_ARGUMENT, "targets[2].boxes");
  targets[2].boxes_len = 0;
  OK(moco_session_step(session, pixels, targets, 4, NULL));
  moco_session_free(session);
}

static void truths_that_cannot_be(const char *folder) {
  const char *backbone = in(folder, "backbone.safetensors");
  moco_session *session = NULL;
  moco_metrics *metrics = NULL;
  moco_samples given = in_memory();
  moco_session_options options = options_for(MOCO_TASK_SEGMENT, NULL);
  OK(moco_session_open(backbone, &options, &session));
  masks[3][5][7] = 2;
  FAILS(moco_session_fit(session, &given, NULL), MOCO_CODE_INVALID_ARGUMENT, "sample 3");
  FAILS(moco_session_evaluate(session, &given, &metrics), MOCO_CODE_INVALID_ARGUMENT, "column 7, row 5");
  masks[3][5][7] = 0;
  samples[2].target.mask_stride = 3;
  FAILS(moco_session_evaluate(session, &given, &metrics), MOCO_CODE_INVALID_ARGUMENT, "mask_stride");
  samples[2].target.mask_stride = SIDE + 8;
  samples[2].target.mask = NULL;
  FAILS(moco_session_evaluate(session, &given, &metrics), MOCO_CODE_INVALID_ARGUMENT, "target.mask");
  samples[2].target.mask = &masks[2][0][0];
  samples[1].pixels.data = NULL;
  FAILS(moco_session_evaluate(session, &given, &metrics), MOCO_CODE_INVALID_ARGUMENT, "pixels.data");
  samples[1].pixels.data = images[1];
  given.len = 0;
  FAILS(moco_session_fit(session, &given, NULL), MOCO_CODE_INVALID_ARGUMENT, "no image");
  given = in_memory();
  given.samples = NULL;
  FAILS(moco_session_fit(session, &given, NULL), MOCO_CODE_INVALID_ARGUMENT, "neither");
  given.struct_size = 0;
  FAILS(moco_session_fit(session, &given, NULL), MOCO_CODE_INVALID_ARGUMENT, "struct_size");
  FAILS(moco_session_fit(session, NULL, NULL), MOCO_CODE_INVALID_ARGUMENT, "`train`");
  FAILS(moco_session_fit(NULL, &given, NULL), MOCO_CODE_INVALID_ARGUMENT, "`session`");
  counts c = {0};
  c.fail_at = 3;
  c.fail_with = 77;
  given = through_callback(&c);
  FAILS(moco_session_fit(session, &given, NULL), MOCO_CODE_INVALID_ARGUMENT, "answered 77");
  CHECK(c.reads - c.releases >= 1 && c.reads >= 3);
  moco_session_free(session);

  options = options_for(MOCO_TASK_MULTI_LABEL, NULL);
  OK(moco_session_open(backbone, &options, &session));
  given = in_memory();
  labels[4][1] = 7;
  FAILS(moco_session_evaluate(session, &given, &metrics), MOCO_CODE_INVALID_ARGUMENT, "labels[1]` is 7");
  labels[4][1] = 0;
  OK(moco_session_evaluate(session, &given, &metrics));
  moco_metrics_free(metrics);
  moco_session_free(session);
  options = options_for(MOCO_TASK_CLASSIFY, NULL);
  OK(moco_session_open(backbone, &options, &session));
  samples[5].target.label = 2;
  FAILS(moco_session_evaluate(session, &given, &metrics), MOCO_CODE_INVALID_ARGUMENT, "sample 5");
  samples[5].target.label = 1;
  moco_session_free(session);
}

static void options_that_cannot_be(const char *folder) {
  moco_session *session = (moco_session *)&samples;
  moco_session *const untouched = session;
  const char *backbone = in(folder, "backbone.safetensors");
#define REFUSED(change, part)                                                          \
  do {                                                                                 \
    moco_session_options options = options_for(MOCO_TASK_CLASSIFY, NULL);              \
    change;                                                                            \
    FAILS(moco_session_open(backbone, &options, &session), MOCO_CODE_INVALID_ARGUMENT, part); \
  } while (0)
  REFUSED(options.task = 0, "task");
  REFUSED(options.classes = 0, "classes");
  REFUSED(options.head = "unet", "linear");
  REFUSED(options.freeze = "everything", "freeze");
  REFUSED(options.batch_norm = "melted", "batch_norm");
  REFUSED(options.augment = "wild", "augment");
  REFUSED(options.optimiser = "magic", "optimiser");
  REFUSED(options.loss = "ce", "loss");
  REFUSED(options.device = "abacus", "device");
  REFUSED(options.values = "all", "all");
  REFUSED(options.settings = "no = [such", "TOML");
  REFUSED(options.settings = "no_such = 3", "no_such");
  REFUSED(options.arch = "resnet18", "arch");
  REFUSED(options.height = 3, "size");
  REFUSED((options.height = 0, options.width = 64), "height");
  REFUSED(options.learning_rate = -1, "lr");
  REFUSED(options.average = 1, "average");
  REFUSED(options.struct_size = 0, "struct_size");
#undef REFUSED
  moco_session_options options = options_for(MOCO_TASK_CLASSIFY, NULL);
  const char *twice[2] = {"same", "same"};
  options.class_names = twice;
  FAILS(moco_session_open(backbone, &options, &session), MOCO_CODE_FORMAT, "`same` names two classes");
  options.class_names = NAMES;
  FAILS(moco_session_open(backbone, NULL, &session), MOCO_CODE_INVALID_ARGUMENT, "`options`");
  FAILS(moco_session_open(backbone, &options, NULL), MOCO_CODE_INVALID_ARGUMENT, "`out`");
  FAILS(moco_session_open(in(folder, "absent"), &options, &session), MOCO_CODE_IO, "absent");
  FAILS(moco_session_open(in(folder, "rubbish.safetensors"), &options, &session), MOCO_CODE_FORMAT, "rubbish");
  CHECK(session == untouched);

  /* Class weights, settings that go further, random starts, one channel of 12 bits. */
  const float weights[CLASSES] = {1, 3};
  options.class_weights = weights;
  options.settings = "validate_every = 2\n[schedule]\ndecay = \"constant\"\nwarmup = 0.0";
  options.arch = "random";
  options.channels = 1;
  options.values = "full";
  options.freeze = "stages:2";
  OK(moco_session_open(backbone, &options, &session));
  static uint16_t deep[SIDE][SIDE];
  for (int y = 0; y < SIDE; ++y) {
    for (int x = 0; x < SIDE; ++x) deep[y][x] = (uint16_t)((x * 100 + y) % 4096);
  }
  const moco_pixels pixels = {deep, 0, SIDE, SIDE, 1, MOCO_PIXEL_TYPE_U16 | MOCO_PIXEL_BITS(12), 0, 0};
  float loss = 0;
  OK(moco_session_step(session, &pixels, &samples[0].target, 1, &loss));
  moco_model *model = NULL;
  moco_prediction *prediction = NULL;
  OK(moco_session_model(session, &model));
  CHECK(moco_model_channels(model) == 1 && strstr(moco_model_head(model), "full") != NULL);
  OK(moco_model_predict(model, &pixels, 1, NULL, &prediction));
  uint32_t label = 99;
  OK(moco_prediction_label(prediction, 0, &label));
  CHECK(label < CLASSES);
  moco_prediction_free(prediction);
  moco_model_free(model);
  moco_session_free(session);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  draw();
  const char *backbone = in(argv[1], "backbone.safetensors");
  trains(argv[1], backbone, MOCO_TASK_CLASSIFY, "accuracy");
  trains(argv[1], NULL, MOCO_TASK_MULTI_LABEL, "map");
  trains(argv[1], in(argv[1], "backbone.safetensors"), MOCO_TASK_SEGMENT, "mean_dice");
  trains(argv[1], in(argv[1], "backbone.safetensors"), MOCO_TASK_DETECT, "map");
  predictions_know_their_task(argv[1]);
  cancelled_and_resumed(argv[1]);
  fed_batch_by_batch(argv[1]);
  truths_that_cannot_be(argv[1]);
  options_that_cannot_be(argv[1]);

  moco_session_cancel(NULL);
  moco_session_free(NULL);
  moco_model_free(NULL);
  moco_prediction_free(NULL);
  moco_metrics_free(NULL);
  CHECK(moco_session_classes(NULL) == 0 && moco_model_classes(NULL) == 0 && moco_model_card(NULL) == NULL);
  CHECK(moco_prediction_images(NULL) == 0 && moco_metrics_len(NULL) == 0 && moco_model_task(NULL) == 0);
  return 0;
}
