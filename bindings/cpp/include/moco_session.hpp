// The part of moco.hpp that trains and uses models: labelled images, sessions, models. Included by moco.hpp.
#ifndef MOCO_SESSION_HPP
#define MOCO_SESSION_HPP

#include "moco.hpp"

namespace moco {

/// What a model says about an image.
enum class Task : std::uint32_t {
  classify = MOCO_TASK_CLASSIFY,        ///< One class.
  multi_label = MOCO_TASK_MULTI_LABEL,  ///< Any number of classes.
  segment = MOCO_TASK_SEGMENT,          ///< A class for every pixel.
  detect = MOCO_TASK_DETECT,            ///< Boxes with a class each.
};

using Box = moco_box;
using Detection = moco_detection;

/// The truth about an image; only what the task asks for is read.
struct Truth {
  std::uint32_t label = 0;            ///< Task::classify.
  std::vector<std::uint8_t> labels;   ///< Task::multi_label: a byte a class, 0 or 1.
  std::vector<std::uint8_t> mask;     ///< Task::segment: height rows of width classes; 255 says nothing.
  std::vector<Box> boxes;             ///< Task::detect.

  [[nodiscard]] static Truth of_label(std::uint32_t label) { return Truth{label, {}, {}, {}}; }
  [[nodiscard]] static Truth of_labels(std::vector<std::uint8_t> labels) { return Truth{0, std::move(labels), {}, {}}; }
  [[nodiscard]] static Truth of_mask(std::vector<std::uint8_t> mask) { return Truth{0, {}, std::move(mask), {}}; }
  [[nodiscard]] static Truth of_boxes(std::vector<Box> boxes) { return Truth{0, {}, {}, std::move(boxes)}; }
};

/// A labelled image.
struct Sample {
  moco_pixels pixels{};                ///< See moco::pixels().
  Truth truth;
  std::shared_ptr<const void> keep;    ///< What the pixels belong to, e.g. a std::shared_ptr<cv::Mat>; kept with the sample.
};

/// A set of labelled images: in memory, or read one by one whenever they are needed.
class Samples {
 public:
  /// In memory.
  Samples(std::vector<Sample> samples) : samples_(std::move(samples)), size_(samples_.size()) {}  // NOLINT: so it reads best
  /// `read(index)` gives a sample. It is called from threads of libmoco, one call after the other, or if it may be,
  /// `concurrent`ly. What it throws, the call that needs the sample throws.
  Samples(std::size_t size, std::function<Sample(std::size_t)> read, bool concurrent = false)
      : read_(std::move(read)), size_(size), concurrent_(concurrent) {
    if (!read_) throw Error(MOCO_CODE_INVALID_ARGUMENT, "`read` is empty");
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] Sample at(std::size_t index) const { return read_ ? read_(index) : samples_.at(index); }

 private:
  friend class Session;
  friend class Model;
  class Call;

  std::vector<Sample> samples_;
  std::function<Sample(std::size_t)> read_;
  std::size_t size_;
  bool concurrent_ = false;
};

namespace detail {

/// A truth as C reads it, while `truth` lives.
[[nodiscard]] inline moco_target target(const Truth& truth, const moco_pixels& pixels) {
  // C has no sizes here, so what is too short is refused before it is read.
  const std::size_t area = static_cast<std::size_t>(pixels.width) * pixels.height;
  if (!truth.mask.empty() && truth.mask.size() != area) {
    throw Error(MOCO_CODE_INVALID_ARGUMENT, "a mask has " + std::to_string(truth.mask.size()) + " values, its image " +
                                                std::to_string(area) + " pixels");
  }
  moco_target target{};
  target.label = truth.label;
  target.labels = truth.labels.empty() ? nullptr : truth.labels.data();
  target.mask = truth.mask.empty() ? nullptr : truth.mask.data();
  target.boxes = truth.boxes.empty() ? nullptr : truth.boxes.data();
  target.boxes_len = truth.boxes.size();
  return target;
}

inline void check_labels(const Truth& truth, std::size_t classes) {
  if (!truth.labels.empty() && truth.labels.size() != classes) {
    throw Error(MOCO_CODE_INVALID_ARGUMENT, "there are " + std::to_string(truth.labels.size()) + " labels for " +
                                                std::to_string(classes) + " classes");
  }
}

}  // namespace detail

/// Samples during one call, and what reading them threw: exceptions must not cross C.
class Samples::Call {
 public:
  Call(const Samples& samples, std::size_t classes) : samples_(samples), classes_(classes) {
    raw.len = samples.size();
    raw.read = &Call::read;
    raw.release = &Call::release;
    raw.user = this;
    raw.concurrent = samples.concurrent_ || !samples.read_ ? 1 : 0;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// Rethrows what reading threw, if anything.
  void rethrow() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (thrown_) std::rethrow_exception(thrown_);
  }

  moco_samples raw = MOCO_SAMPLES_INIT;

 private:
  static int read(std::size_t index, moco_sample* out, void* user) noexcept {
    auto* call = static_cast<Call*>(user);
    try {
      auto sample = std::make_unique<Sample>(call->samples_.at(index));
      detail::check_labels(sample->truth, call->classes_);
      out->pixels = sample->pixels;
      out->target = detail::target(sample->truth, sample->pixels);
      out->owner = sample.release();
      return 0;
    } catch (...) {
      const std::lock_guard<std::mutex> lock(call->mutex_);
      if (!call->thrown_) call->thrown_ = std::current_exception();
      return 1;
    }
  }
  static void release(const moco_sample* sample, void*) noexcept { delete static_cast<Sample*>(sample->owner); }

  const Samples& samples_;
  std::size_t classes_;
  mutable std::mutex mutex_;
  std::exception_ptr thrown_;
};

/// How well a model does: measures by name.
class Metrics {
 public:
  /// Takes ownership.
  explicit Metrics(moco_metrics* metrics) : metrics_(metrics, &moco_metrics_free) {}
  [[nodiscard]] std::size_t images() const noexcept { return moco_metrics_images(get()); }
  /// All of them; the first is the one that decides.
  [[nodiscard]] std::vector<std::pair<std::string, double>> all() const {
    std::vector<std::pair<std::string, double>> all;
    for (std::size_t i = 0; i < moco_metrics_len(get()); ++i) {
      all.emplace_back(moco_metrics_name(get(), i), moco_metrics_value(get(), i));
    }
    return all;
  }
  /// One of them, e.g. "accuracy"; one that is not there is an error that names those that are.
  [[nodiscard]] double operator[](const std::string& name) const {
    double value = 0;
    detail::check(moco_metrics_get(get(), name.c_str(), &value));
    return value;
  }
  [[nodiscard]] const moco_metrics* get() const noexcept { return metrics_.get(); }

 private:
  std::unique_ptr<moco_metrics, decltype(&moco_metrics_free)> metrics_;
};

/// The classes of an image's pixels, which belong to the Predictions.
struct MaskView {
  const std::uint8_t* data = nullptr;  ///< Rows without gaps.
  std::size_t width = 0;
  std::size_t height = 0;
};

/// Answers about a number of images, each in pixels of its image.
class Predictions {
 public:
  /// Takes ownership.
  explicit Predictions(moco_prediction* prediction) : prediction_(prediction, &moco_prediction_free) {}
  [[nodiscard]] std::size_t images() const noexcept { return moco_prediction_images(get()); }
  /// The most probable class of an image.
  [[nodiscard]] std::uint32_t label(std::size_t image = 0) const {
    std::uint32_t label = 0;
    detail::check(moco_prediction_label(get(), image, &label));
    return label;
  }
  /// Probability of each class of an image; empty if the model is no classifier.
  [[nodiscard]] std::vector<float> probabilities(std::size_t image = 0) const {
    std::size_t len = 0;
    const float* data = moco_prediction_probabilities(in_range(image), image, &len);
    return len == 0 ? std::vector<float>() : std::vector<float>(data, data + len);
  }
  /// The most probable class of each pixel of an image; of size 0 if the model does not segment.
  [[nodiscard]] MaskView mask(std::size_t image = 0) const {
    MaskView view;
    view.data = moco_prediction_mask(in_range(image), image, &view.width, &view.height);
    return view;
  }
  /// How probable those are; as many as the mask has pixels.
  [[nodiscard]] const float* confidence(std::size_t image = 0) const {
    return moco_prediction_confidence(in_range(image), image, nullptr);
  }
  /// The objects found in an image, the surest first.
  [[nodiscard]] std::vector<Detection> detections(std::size_t image = 0) const {
    std::size_t len = 0;
    const Detection* data = moco_prediction_detections(in_range(image), image, &len);
    return len == 0 ? std::vector<Detection>() : std::vector<Detection>(data, data + len);
  }
  [[nodiscard]] const moco_prediction* get() const noexcept { return prediction_.get(); }

 private:
  [[nodiscard]] const moco_prediction* in_range(std::size_t image) const {
    if (image >= images()) throw Error(MOCO_CODE_INVALID_ARGUMENT, "there is no answer " + std::to_string(image));
    return get();
  }

  std::unique_ptr<moco_prediction, decltype(&moco_prediction_free)> prediction_;
};

/// How a model is asked; see moco_predict_options.
struct PredictOptions {
  std::string device;                  ///< Empty = a GPU if there is one.
  std::uint32_t batch = 0;             ///< 0 = chosen.
  std::uint32_t max_detections = 0;    ///< 0 = 100.
  float score = 0.0F;                  ///< 0 = 0.05.
  float nms_iou = 0.0F;                ///< 0 = 0.6.
};

/// A backbone and a head in one file.
class Model {
 public:
  /// Reads a model that save() wrote; see moco_model_open().
  [[nodiscard]] static Model open(const std::string& path) {
    detail::check_version();
    moco_model* out = nullptr;
    detail::check(moco_model_open(path.c_str(), &out));
    return Model(out);
  }
  /// Takes ownership.
  explicit Model(moco_model* model) : model_(model, &moco_model_free) {}

  void save(const std::string& path) const { detail::check(moco_model_save(get(), path.c_str())); }
  void export_onnx(const std::string& path) const { detail::check(moco_model_export_onnx(get(), path.c_str())); }
  [[nodiscard]] Task task() const noexcept { return static_cast<Task>(moco_model_task(get())); }
  [[nodiscard]] std::size_t classes() const noexcept { return moco_model_classes(get()); }
  [[nodiscard]] std::string class_name(std::size_t label) const { return detail::text(moco_model_class_name(get(), label)); }
  [[nodiscard]] std::size_t channels() const noexcept { return moco_model_channels(get()); }
  /// The backbone's card, JSON.
  [[nodiscard]] std::string card() const { return detail::text(moco_model_card(get())); }
  /// The head's card, JSON.
  [[nodiscard]] std::string head() const { return detail::text(moco_model_head(get())); }

  [[nodiscard]] Predictions predict(const std::vector<moco_pixels>& images, const PredictOptions& options = {}) const {
    const moco_predict_options raw = given(options);
    moco_prediction* out = nullptr;
    detail::check(moco_model_predict(get(), images.data(), images.size(), &raw, &out));
    return Predictions(out);
  }
  /// Image files.
  [[nodiscard]] Predictions predict(const std::vector<std::string>& paths, const PredictOptions& options = {}) const {
    std::vector<const char*> pointers;
    for (const auto& path : paths) pointers.push_back(path.c_str());
    const moco_predict_options raw = given(options);
    moco_prediction* out = nullptr;
    detail::check(moco_model_predict_paths(get(), pointers.data(), pointers.size(), &raw, &out));
    return Predictions(out);
  }
  [[nodiscard]] Metrics evaluate(const Samples& samples, const PredictOptions& options = {}) const {
    Samples::Call call(samples, classes());
    const moco_predict_options raw = given(options);
    moco_metrics* out = nullptr;
    moco_error* error = moco_model_evaluate(get(), &call.raw, &raw, &out);
    if (error != nullptr) {
      std::unique_ptr<moco_error, decltype(&moco_error_free)> owner(error, &moco_error_free);
      call.rethrow();
      throw Error(moco_error_code(error), moco_error_message(error));
    }
    return Metrics(out);
  }
  [[nodiscard]] const moco_model* get() const noexcept { return model_.get(); }

 private:
  static moco_predict_options given(const PredictOptions& options) {
    moco_predict_options raw = MOCO_PREDICT_OPTIONS_INIT;
    raw.device = options.device.empty() ? nullptr : options.device.c_str();
    raw.batch = options.batch;
    raw.max_detections = options.max_detections;
    raw.score = options.score;
    raw.nms_iou = options.nms_iou;
    return raw;
  }

  std::unique_ptr<moco_model, decltype(&moco_model_free)> model_;
};

/// How a session is set up; see moco_session_options. What is left empty or 0 is chosen.
struct SessionOptions {
  Task task = Task::classify;
  std::vector<std::string> classes;    ///< Names, all different: there are as many classes.
  std::vector<float> class_weights;
  std::string arch;                    ///< Of a random start.
  std::string head;                    ///< "linear", "mlp:512", "fpn", "unet:32", "fcos", …
  std::string freeze;                  ///< "nothing", "stages:2", "backbone".
  std::string batch_norm;              ///< "trained", "frozen".
  std::string loss;                    ///< Of a segmentation: "ce+dice", …
  std::string augment;                 ///< "none", "light", "default", "microscopy".
  std::string optimiser;               ///< "adamw", "sgd".
  std::string values;                  ///< Of images above 8 bits: "full", "window:-160,240", …
  std::string device;                  ///< "auto", "cpu", "cuda:0".
  std::string settings;                ///< TOML.
  std::string checkpoint;              ///< Written after each epoch.
  std::uint64_t seed = 0;
  std::uint32_t channels = 0;
  std::uint32_t height = 0;
  std::uint32_t width = 0;             ///< 0 = as height.
  std::uint32_t epochs = 0;
  std::uint32_t steps = 0;
  std::uint32_t batch = 0;
  std::uint32_t patience = 0;
  std::uint32_t threads = 0;
  float learning_rate = 0.0F;
  float backbone_rate = 0.0F;
  float layer_decay = 0.0F;
  float weight_decay = 0.0F;
  float warmup = 0.0F;
  float average = 0.0F;
  /// Called after steps, epochs and parts of evaluations; false cancels. What it throws, the call throws.
  std::function<bool(const moco_session_progress&)> progress;
};

/// A training in progress. One call at a time, but cancel().
class Session {
 public:
  /// Starts from a backbone or a model; see moco_session_open().
  Session(const std::string& place, const SessionOptions& options) : Session(opened(place.c_str(), options)) {}
  /// Starts at random.
  [[nodiscard]] static Session random(const SessionOptions& options) { return opened(nullptr, options); }
  /// Goes on from a checkpoint; of the options, progress, checkpoint, device and threads are read.
  [[nodiscard]] static Session resume(const std::string& checkpoint, const SessionOptions& options = {}) {
    detail::check_version();
    Session session(options);
    const Raw raw(options, session.state_.get());
    moco_session* out = nullptr;
    detail::check(moco_session_resume(checkpoint.c_str(), &raw.options, &out));
    session.session_.reset(out);
    return session;
  }

  /// One step on a batch; returns the loss before it.
  float step(const std::vector<moco_pixels>& images, const std::vector<Truth>& truths) {
    if (images.size() != truths.size()) throw Error(MOCO_CODE_INVALID_ARGUMENT, "there must be one truth an image");
    std::vector<moco_target> targets;
    for (std::size_t i = 0; i < images.size(); ++i) {
      detail::check_labels(truths[i], classes());
      targets.push_back(detail::target(truths[i], images[i]));
    }
    float loss = 0;
    check(moco_session_step(get(), images.data(), targets.data(), images.size(), &loss));
    return loss;
  }
  /// Trains to the end; returns false if it was cancelled, and can go on then.
  bool fit(const Samples& train) { return fit(train, nullptr); }
  /// As above; after each epoch the weights are judged on `validation`, and the best are kept.
  bool fit(const Samples& train, const Samples& validation) { return fit(train, &validation); }
  [[nodiscard]] Metrics evaluate(const Samples& samples) {
    Samples::Call call(samples, classes());
    moco_metrics* out = nullptr;
    check(moco_session_evaluate(get(), &call.raw, &out), {&call});
    return Metrics(out);
  }
  /// The model as it is now.
  [[nodiscard]] Model model() {
    moco_model* out = nullptr;
    check(moco_session_model(get(), &out));
    return Model(out);
  }
  void checkpoint(const std::string& path) { check(moco_session_checkpoint(get(), path.c_str())); }
  /// Makes the call that runs stop soon; from any thread.
  void cancel() const noexcept { moco_session_cancel(session_.get()); }
  [[nodiscard]] std::size_t classes() const noexcept { return moco_session_classes(session_.get()); }
  [[nodiscard]] moco_session* get() const noexcept { return session_.get(); }

 private:
  /// What the callback needs; stays where it is when the session moves.
  struct State {
    std::function<bool(const moco_session_progress&)> progress;
    std::exception_ptr thrown;

    static int told(const moco_session_progress* progress, void* user) noexcept {
      auto* state = static_cast<State*>(user);
      try {
        return state->progress(*progress) ? 0 : 1;
      } catch (...) {
        state->thrown = std::current_exception();
        return 1;
      }
    }
  };

  /// Options as C reads them, while those of C++ live.
  struct Raw {
    Raw(const SessionOptions& given, State* state) {
      const auto text = [](const std::string& text) { return text.empty() ? nullptr : text.c_str(); };
      for (const auto& name : given.classes) names.push_back(name.c_str());
      if (!given.class_weights.empty() && given.class_weights.size() != names.size()) {
        throw Error(MOCO_CODE_INVALID_ARGUMENT, "there must be as many class weights as classes");
      }
      options.class_names = names.data();
      options.class_weights = given.class_weights.empty() ? nullptr : given.class_weights.data();
      options.arch = text(given.arch);
      options.head = text(given.head);
      options.freeze = text(given.freeze);
      options.batch_norm = text(given.batch_norm);
      options.loss = text(given.loss);
      options.augment = text(given.augment);
      options.optimiser = text(given.optimiser);
      options.values = text(given.values);
      options.device = text(given.device);
      options.settings = text(given.settings);
      options.checkpoint = text(given.checkpoint);
      if (state->progress) {
        options.progress = &State::told;
        options.user = state;
      }
      options.seed = given.seed;
      options.task = static_cast<std::uint32_t>(given.task);
      options.classes = static_cast<std::uint32_t>(names.size());
      options.channels = given.channels;
      options.height = given.height;
      options.width = given.width;
      options.epochs = given.epochs;
      options.steps = given.steps;
      options.batch = given.batch;
      options.patience = given.patience;
      options.threads = given.threads;
      options.learning_rate = given.learning_rate;
      options.backbone_rate = given.backbone_rate;
      options.layer_decay = given.layer_decay;
      options.weight_decay = given.weight_decay;
      options.warmup = given.warmup;
      options.average = given.average;
    }
    moco_session_options options = MOCO_SESSION_OPTIONS_INIT;
    std::vector<const char*> names;
  };

  explicit Session(const SessionOptions& options)
      : state_(new State{options.progress, nullptr}), session_(nullptr, &moco_session_free) {}
  static Session opened(const char* place, const SessionOptions& options) {
    detail::check_version();
    Session session(options);
    const Raw raw(options, session.state_.get());
    moco_session* out = nullptr;
    detail::check(moco_session_open(place, &raw.options, &out));
    session.session_.reset(out);
    return session;
  }

  bool fit(const Samples& train, const Samples* validation) {
    Samples::Call call(train, classes());
    if (validation == nullptr) return finished(moco_session_fit(get(), &call.raw, nullptr), {&call});
    Samples::Call judged(*validation, classes());
    return finished(moco_session_fit(get(), &call.raw, &judged.raw), {&call, &judged});
  }
  bool finished(moco_error* error, std::initializer_list<const Samples::Call*> calls) {
    const bool cancelled = moco_error_code(error) == MOCO_CODE_CANCELLED;
    if (cancelled && !state_->thrown) {
      moco_error_free(error);
      return false;
    }
    check(error, calls);
    return true;
  }
  /// Throws what a callback threw, else what libmoco reported.
  void check(moco_error* error, std::initializer_list<const Samples::Call*> calls = {}) {
    if (error == nullptr) return;
    std::unique_ptr<moco_error, decltype(&moco_error_free)> owner(error, &moco_error_free);
    if (state_->thrown) std::rethrow_exception(std::exchange(state_->thrown, nullptr));
    for (const auto* call : calls) call->rethrow();
    throw Error(moco_error_code(error), moco_error_message(error));
  }

  std::unique_ptr<State> state_;
  std::unique_ptr<moco_session, decltype(&moco_session_free)> session_;
};

}  // namespace moco

#endif  // MOCO_SESSION_HPP
