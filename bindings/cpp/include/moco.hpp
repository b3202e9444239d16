// libmoco for C++17: owners for the objects of moco.h, exceptions for its errors. Header only. Training sessions and models
// are in moco_session.hpp, which this file includes.
//
// Every class is move-only and frees what it owns. Functions that can fail throw moco::Error. What moco.h says about
// threads holds here: const member functions may run at the same time.
#ifndef MOCO_HPP
#define MOCO_HPP

#if __cplusplus < 201703L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 201703L)
# error "moco.hpp needs C++17: set CMAKE_CXX_STANDARD to 17, or compile with -std=c++17"
#endif

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moco.h"

namespace moco {

/// What a function of libmoco reported.
class Error : public std::runtime_error {
 public:
  Error(moco_code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] moco_code code() const noexcept { return code_; }

 private:
  moco_code code_;
};

namespace detail {

/// Throws if there is an error, and frees it.
inline void check(moco_error* error) {
  if (error == nullptr) return;
  std::unique_ptr<moco_error, decltype(&moco_error_free)> owner(error, &moco_error_free);
  throw Error(moco_error_code(error), moco_error_message(error));
}

/// A header of one version in front of a library of another is found at the first object, not at the first crash.
inline void check_version() {
  static const bool same = [] {
    const std::string header = std::to_string(MOCO_VERSION_MAJOR) + "." + std::to_string(MOCO_VERSION_MINOR) + ".";
    const std::string library = moco_version();
    if (library.compare(0, header.size(), header) != 0) {
      throw Error(MOCO_CODE_INVALID_ARGUMENT, "moco.hpp is of version " + header + "x, the loaded libmoco of " + library);
    }
    if (moco_abi_version() != MOCO_ABI_VERSION) {
      throw Error(MOCO_CODE_INVALID_ARGUMENT, "moco.hpp is for ABI " + std::to_string(MOCO_ABI_VERSION) +
                                                  ", the loaded libmoco has ABI " + std::to_string(moco_abi_version()));
    }
    return true;
  }();
  (void)same;
}

inline std::string text(const char* text) { return text == nullptr ? std::string() : std::string(text); }

}  // namespace detail

/// Version of the loaded library.
[[nodiscard]] inline std::string version() { return moco_version(); }

/// Receives a message of libmoco.
using LogReceiver = std::function<void(moco_log_level level, const std::string& message)>;

namespace detail {

struct Log {
  std::mutex mutex;
  std::shared_ptr<const LogReceiver> receiver;

  /// Never destroyed: a thread of libmoco may speak while the process ends.
  static Log& instance() {
    static auto* const log = new Log;
    return *log;
  }
  std::shared_ptr<const LogReceiver> current() {
    const std::lock_guard<std::mutex> lock(mutex);
    return receiver;
  }
  static void told(std::uint32_t level, const char* message, void*) noexcept {
    try {
      // Held during the call, in which another thread may set another receiver.
      if (const auto receiver = instance().current()) (*receiver)(static_cast<moco_log_level>(level), message);
    } catch (...) {
      // A message that cannot be delivered must not end what it is about.
    }
  }
};

}  // namespace detail

/// Sets who receives libmoco's messages (which runtime is loaded, what is assumed of a file of others); nobody at first,
/// and again for an empty function. Called from any thread, several at once.
inline void set_log(LogReceiver receiver) {
  const bool wanted = static_cast<bool>(receiver);
  auto shared = wanted ? std::make_shared<const LogReceiver>(std::move(receiver)) : nullptr;
  {
    const std::lock_guard<std::mutex> lock(detail::Log::instance().mutex);
    detail::Log::instance().receiver.swap(shared);
  }
  moco_log_set(wanted ? &detail::Log::told : nullptr, nullptr);
}

/// 8-bit pixels, rows from top to bottom, channels interleaved (RGB, not BGR). The pixels are read during calls only.
/// `row_stride` in bytes; 0 = no gap.
[[nodiscard]] inline moco_pixels pixels(const std::uint8_t* data, std::uint32_t width, std::uint32_t height,
                                        std::uint32_t channels, std::size_t row_stride = 0) {
  return moco_pixels{data, row_stride, width, height, channels, MOCO_PIXEL_TYPE_U8, 0.0F, 0.0F};
}

/// 16-bit pixels; `black` and `white` are the values that become 0 and 255 (black above white inverts).
[[nodiscard]] inline moco_pixels pixels(const std::uint16_t* data, std::uint32_t width, std::uint32_t height,
                                        std::uint32_t channels, float black, float white, std::size_t row_stride = 0) {
  return moco_pixels{data, row_stride, width, height, channels, MOCO_PIXEL_TYPE_U16, black, white};
}

/// Signed 16-bit pixels, as CT has them; `black` and `white` as above.
[[nodiscard]] inline moco_pixels pixels(const std::int16_t* data, std::uint32_t width, std::uint32_t height,
                                        std::uint32_t channels, float black, float white, std::size_t row_stride = 0) {
  return moco_pixels{data, row_stride, width, height, channels, MOCO_PIXEL_TYPE_I16, black, white};
}

/// Floating-point pixels, as above.
[[nodiscard]] inline moco_pixels pixels(const float* data, std::uint32_t width, std::uint32_t height,
                                        std::uint32_t channels, float black, float white, std::size_t row_stride = 0) {
  return moco_pixels{data, row_stride, width, height, channels, MOCO_PIXEL_TYPE_F32, black, white};
}

/// A decoded image of a file.
class Frame {
 public:
  explicit Frame(moco_frame* frame) : frame_(frame, &moco_frame_free) {}
  /// Its pixels, which live as long as this object, with the window that the file suggests; see moco_frame_pixels().
  [[nodiscard]] moco_pixels pixels() const {
    moco_pixels pixels{};
    detail::check(moco_frame_pixels(frame_.get(), &pixels));
    return pixels;
  }

 private:
  std::unique_ptr<moco_frame, decltype(&moco_frame_free)> frame_;
};

/// An image file: JPEG, PNG, TIFF, DICOM or NIfTI.
class ImageFile {
 public:
  explicit ImageFile(const std::string& path) : image_(nullptr, &moco_image_free) {
    moco_image* image = nullptr;
    detail::check(moco_image_open(path.c_str(), &image));
    image_.reset(image);
  }
  /// Size, channels, depth, number of images; its text lives as long as this object.
  [[nodiscard]] moco_image_facts info() const {
    moco_image_facts facts{};
    detail::check(moco_image_info(image_.get(), &facts));
    return facts;
  }
  /// Decodes one of its images.
  [[nodiscard]] Frame read(std::size_t frame = 0) const {
    moco_frame* decoded = nullptr;
    detail::check(moco_image_read(image_.get(), frame, &decoded));
    return Frame(decoded);
  }

 private:
  std::unique_ptr<moco_image, decltype(&moco_image_free)> image_;
};

/// Features of a number of images: one array a tap.
class Features {
 public:
  /// Takes ownership.
  explicit Features(moco_features* features) : features_(features, &moco_features_free) {}

  [[nodiscard]] std::size_t images() const noexcept { return moco_features_images(get()); }
  [[nodiscard]] std::size_t taps() const noexcept { return moco_features_taps(get()); }
  [[nodiscard]] std::string tap_name(std::size_t tap = 0) const {
    return detail::text(moco_features_tap_name(get(), tap));
  }
  /// [images, channels] or [images, channels, height, width].
  [[nodiscard]] std::vector<std::size_t> shape(std::size_t tap = 0) const {
    std::size_t shape[4];
    std::size_t dims = 0;
    detail::check(moco_features_shape(get(), tap, &shape, &dims));
    return std::vector<std::size_t>(shape, shape + dims);
  }
  /// The array, which lives as long as this object; NULL if it is empty.
  [[nodiscard]] const float* data(std::size_t tap = 0) const noexcept {
    return moco_features_data(get(), tap, nullptr);
  }
  /// Number of floats in the array.
  [[nodiscard]] std::size_t size(std::size_t tap = 0) const noexcept {
    std::size_t len = 0;
    (void)moco_features_data(get(), tap, &len);
    return len;
  }
  /// Floats an image.
  [[nodiscard]] std::size_t dim(std::size_t tap = 0) const noexcept {
    return images() == 0 ? 0 : size(tap) / images();
  }
  /// The array of one image.
  [[nodiscard]] const float* row(std::size_t image, std::size_t tap = 0) const {
    if (image >= images() || tap >= taps()) throw Error(MOCO_CODE_INVALID_ARGUMENT, "there is no such row of features");
    return data(tap) + image * dim(tap);
  }
  [[nodiscard]] const moco_features* get() const noexcept { return features_.get(); }

 private:
  std::unique_ptr<moco_features, decltype(&moco_features_free)> features_;
};

/// How a backbone is opened; see moco_backbone_options.
struct BackboneOptions {
  std::string taps = "pooled";  ///< Separated by commas.
  std::string ort_library;      ///< Empty = searched.
  std::uint32_t threads = 0;    ///< 0 = one a core.
  std::uint32_t batch = 0;      ///< 0 = chosen.
  std::string calibration;      ///< File of `moco-infer calibrate`: int8. Empty = f32.
  std::uint32_t channels = 0;   ///< Of the images; the first convolution is adapted. 0 = as the card says.
};

/// A backbone: turns images into features.
class Backbone {
 public:
  /// Opens a backbone: a file, a folder that holds one, or hf://owner/name[@revision][/file]; see moco_backbone_open().
  explicit Backbone(const std::string& path, const BackboneOptions& options = {})
      : backbone_(nullptr, &moco_backbone_free) {
    detail::check_version();
    moco_backbone_options raw = MOCO_BACKBONE_OPTIONS_INIT;
    raw.taps = options.taps.c_str();
    raw.ort_library = options.ort_library.empty() ? nullptr : options.ort_library.c_str();
    raw.threads = options.threads;
    raw.batch = options.batch;
    raw.calibration = options.calibration.empty() ? nullptr : options.calibration.c_str();
    raw.channels = options.channels;
    moco_backbone* backbone = nullptr;
    detail::check(moco_backbone_open(path.c_str(), &raw, &backbone));
    backbone_.reset(backbone);
  }

  [[nodiscard]] std::string arch() const { return detail::text(moco_backbone_arch(get())); }
  [[nodiscard]] std::string method() const { return detail::text(moco_backbone_method(get())); }
  /// The card, JSON.
  [[nodiscard]] std::string card() const { return detail::text(moco_backbone_card(get())); }
  /// All taps there are.
  [[nodiscard]] std::vector<std::string> taps() const {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < moco_backbone_taps(get()); ++i) names.emplace_back(moco_backbone_tap_name(get(), i));
    return names;
  }
  /// Channels of a tap.
  [[nodiscard]] std::size_t dim(const std::string& tap = "pooled") const {
    std::size_t dim = 0;
    detail::check(moco_backbone_tap_dim(get(), tap.c_str(), &dim));
    return dim;
  }

  [[nodiscard]] Features extract(const moco_pixels* images, std::size_t n) const {
    moco_features* out = nullptr;
    detail::check(moco_backbone_extract_pixels(get(), images, n, &out));
    return Features(out);
  }
  [[nodiscard]] Features extract(const std::vector<moco_pixels>& images) const {
    return extract(images.data(), images.size());
  }
  /// Encoded images: the bytes of JPEG or PNG files.
  [[nodiscard]] Features extract(const std::vector<std::vector<std::uint8_t>>& files) const {
    std::vector<moco_bytes> bytes;
    for (const auto& file : files) bytes.push_back(moco_bytes{file.data(), file.size()});
    moco_features* out = nullptr;
    detail::check(moco_backbone_extract_encoded(get(), bytes.data(), bytes.size(), &out));
    return Features(out);
  }
  /// Image files.
  [[nodiscard]] Features extract(const std::vector<std::string>& paths) const {
    std::vector<const char*> pointers;
    for (const auto& path : paths) pointers.push_back(path.c_str());
    return extract_paths(pointers.data(), pointers.size());
  }
  /// As above, written out: extract({"a.jpg", "b.jpg"}).
  [[nodiscard]] Features extract(std::initializer_list<const char*> paths) const {
    return extract_paths(paths.begin(), paths.size());
  }
  [[nodiscard]] const moco_backbone* get() const noexcept { return backbone_.get(); }

 private:
  [[nodiscard]] Features extract_paths(const char* const* paths, std::size_t n) const {
    moco_features* out = nullptr;
    detail::check(moco_backbone_extract_paths(get(), paths, n, &out));
    return Features(out);
  }

  std::unique_ptr<moco_backbone, decltype(&moco_backbone_free)> backbone_;
};

/// How a head is fitted; see moco_fit_options.
struct FitOptions {
  std::vector<std::string> class_names;  ///< Empty = none.
  std::uint64_t seed = 0;
  std::uint32_t epochs = 0;     ///< 0 = 100.
  std::uint32_t batch = 0;      ///< 0 = 256.
  float learning_rate = 0.0F;   ///< 0 = chosen.
  float weight_decay = 0.0F;
  bool keep_scale = false;      ///< Take features as they are while fitting.
  /// Called after each epoch; false cancels. What it throws, fit() throws.
  std::function<bool(const moco_fit_progress&)> progress;
};

/// Classes and their probabilities.
struct Prediction {
  std::vector<std::uint32_t> labels;  ///< One an image.
  std::vector<float> probabilities;   ///< [images, classes]
};

/// A linear head on features.
class Head {
 public:
  /// Fits a head on features of a tap, one label an image.
  [[nodiscard]] static Head fit(const Features& features, const std::vector<std::uint32_t>& labels, std::size_t classes,
                                const FitOptions& options = {}, std::size_t tap = 0) {
    Call call(options, classes);
    moco_head* out = nullptr;
    call.check(moco_head_fit_features(features.get(), tap, labels.data(), labels.size(), classes, &call.raw, &out));
    return Head(out);
  }
  /// Fits a head on rows of `dim` floats.
  [[nodiscard]] static Head fit(const std::vector<float>& features, std::size_t dim,
                                const std::vector<std::uint32_t>& labels, std::size_t classes,
                                const FitOptions& options = {}) {
    if (features.size() != labels.size() * dim) {
      throw Error(MOCO_CODE_INVALID_ARGUMENT, "features must hold `dim` floats for each label");
    }
    Call call(options, classes);
    moco_head* out = nullptr;
    call.check(moco_head_fit(features.data(), labels.size(), dim, labels.data(), classes, &call.raw, &out));
    return Head(out);
  }
  /// Fits a head on images, through the backbone's first tap.
  [[nodiscard]] static Head fit(const Backbone& backbone, const std::vector<moco_pixels>& images,
                                const std::vector<std::uint32_t>& labels, std::size_t classes,
                                const FitOptions& options = {}) {
    same_number(images.size(), labels.size());
    Call call(options, classes);
    moco_head* out = nullptr;
    call.check(moco_head_fit_pixels(backbone.get(), images.data(), labels.data(), labels.size(), classes, &call.raw, &out));
    return Head(out);
  }
  /// Reads a head that save() wrote.
  [[nodiscard]] static Head open(const std::string& path) {
    detail::check_version();
    moco_head* out = nullptr;
    detail::check(moco_head_open(path.c_str(), &out));
    return Head(out);
  }

  void save(const std::string& path) const { detail::check(moco_head_save(get(), path.c_str())); }
  [[nodiscard]] std::size_t classes() const noexcept { return moco_head_classes(get()); }
  [[nodiscard]] std::size_t dim() const noexcept { return moco_head_dim(get()); }
  [[nodiscard]] std::string tap() const { return detail::text(moco_head_tap(get())); }
  /// Name of a class; empty if the head has none.
  [[nodiscard]] std::string class_name(std::size_t label) const {
    return detail::text(moco_head_class_name(get(), label));
  }

  /// For features of a tap. Refuses those of another tap or backbone than the head was fitted on.
  [[nodiscard]] Prediction predict(const Features& features, std::size_t tap = 0) const {
    Prediction result = room_for(features.images());
    detail::check(moco_head_predict_features(get(), features.get(), tap, result.probabilities.data(),
                                             result.probabilities.size(), result.labels.data(), result.labels.size()));
    return result;
  }
  /// For `n` rows of `dim` floats.
  [[nodiscard]] Prediction predict(const float* features, std::size_t n, std::size_t dim) const {
    Prediction result = room_for(n);
    detail::check(moco_head_predict(get(), features, n, dim, result.probabilities.data(), result.probabilities.size(),
                                    result.labels.data(), n));
    return result;
  }
  /// For images, through the backbone that the head was fitted on.
  [[nodiscard]] Prediction predict(const Backbone& backbone, const std::vector<moco_pixels>& images) const {
    Prediction result = room_for(images.size());
    detail::check(moco_head_predict_pixels(get(), backbone.get(), images.data(), images.size(),
                                           result.probabilities.data(), result.probabilities.size(),
                                           result.labels.data(), images.size()));
    return result;
  }
  [[nodiscard]] const moco_head* get() const noexcept { return head_.get(); }

 private:
  explicit Head(moco_head* head) : head_(head, &moco_head_free) {}

  /// Options of one call, and what its callback threw: exceptions must not cross C.
  struct Call {
    Call(const FitOptions& options, std::size_t classes) : progress(options.progress) {
      detail::check_version();
      if (!options.class_names.empty()) {
        if (options.class_names.size() != classes) {
          throw Error(MOCO_CODE_INVALID_ARGUMENT, "there must be as many class names as classes");
        }
        for (const auto& name : options.class_names) names.push_back(name.c_str());
        raw.class_names = names.data();
      }
      raw.seed = options.seed;
      raw.epochs = options.epochs;
      raw.batch = options.batch;
      raw.learning_rate = options.learning_rate;
      raw.weight_decay = options.weight_decay;
      raw.keep_scale = options.keep_scale ? 1 : 0;
      if (progress) {
        raw.progress = &Call::told;
        raw.user = this;
      }
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    static int told(const moco_fit_progress* progress, void* user) noexcept {
      auto* call = static_cast<Call*>(user);
      try {
        return call->progress(*progress) ? 0 : 1;
      } catch (...) {
        call->thrown = std::current_exception();
        return 1;
      }
    }
    void check(moco_error* error) {
      if (thrown) {
        moco_error_free(error);
        std::rethrow_exception(thrown);
      }
      detail::check(error);
    }

    moco_fit_options raw = MOCO_FIT_OPTIONS_INIT;
    std::vector<const char*> names;
    std::function<bool(const moco_fit_progress&)> progress;
    std::exception_ptr thrown;
  };

  static void same_number(std::size_t images, std::size_t labels) {
    if (images != labels) throw Error(MOCO_CODE_INVALID_ARGUMENT, "there must be one label an image");
  }
  [[nodiscard]] Prediction room_for(std::size_t n) const {
    return Prediction{std::vector<std::uint32_t>(n), std::vector<float>(n * classes())};
  }

  std::unique_ptr<moco_head, decltype(&moco_head_free)> head_;
};

}  // namespace moco

#include "moco_session.hpp"

#endif  // MOCO_HPP
