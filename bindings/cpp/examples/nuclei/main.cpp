// Marks nuclei in fluorescence images, or any classes of pixels in pictures of one channel and 8 to 16 bits.
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <limits>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <sstream>
#include <stdexcept>

#include "../common/arguments.hpp"
#include "../common/compare.hpp"
#include "../common/progress.hpp"
#include "../common/tiles.hpp"
#include "images.hpp"

namespace fs = std::filesystem;

namespace {

const char* const USAGE =
    "nuclei train   --train DATA --test DATA --model FILE [--backbone FILE] [--masks FOLDER] [options]\n"
    "  learns to segment, prints Dice a picture and a class of --test, writes the model and the masks\n"
    "nuclei segment --model FILE --masks FOLDER [--window W] PICTURE...\n"
    "  writes a mask a picture: PNG of 8 bits, of the picture's size, the class of every pixel\n"
    "nuclei compare --train DATA --test DATA --backbone FILE [--labels 1,0.1] [--seeds 3] [options]\n"
    "  the same training from random weights and from the backbone, with all labelled pictures and with a tenth of them\n"
    "nuclei tiles   --out FOLDER [--size 96] [--window W] PICTURE...\n"
    "  cuts pictures into squares of 8 bits, for `moco-train pretrain`\n"
    "nuclei wrap    --out FOLDER [--bits 12] PICTURE...\n"
    "  writes pictures as DICOM files\n"
    "DATA is a folder with `images` (DICOM, NIfTI, PNG, TIFF) and `masks` (PNG of the same names: the class of every pixel,\n"
    "255 = not known). A backbone is a file of moco-train, or hf://owner/name; it must read one channel.\n"
    "options: --classes background,nucleus,edge  --weights 1,1,1 (of the classes, in the loss)\n"
    "         --window auto|file|full|LOW,HIGH  --steps 300  --batch 4  --size 128\n"
    "         --head unet:16  --rate 0.002  --backbone-rate 1 (times --rate)  --threads 0 (all cores)\n"
    "         --seed 0 (not of compare)\n";

/// Pictures in memory with the class of every pixel.
struct Set {
  std::vector<Picture> pictures;
  std::vector<cv::Mat> masks;
  std::vector<moco_pixels> pixels;

  /// Labelled pictures for libmoco, which point into this set.
  [[nodiscard]] moco::Samples samples(const std::vector<std::size_t>& indices) const {
    std::vector<moco::Sample> all;
    for (const std::size_t i : indices) {
      const std::vector<std::uint8_t> mask(masks[i].begin<std::uint8_t>(), masks[i].end<std::uint8_t>());
      all.push_back({pixels[i], moco::Truth::of_mask(mask), nullptr});
    }
    return all;
  }
};

Set read_set(const Arguments& arguments, const std::string& part) {
  const fs::path folder = arguments.text(part);
  const Window window(arguments.text("window", "auto"));
  Set set;
  for (const auto& file : files_of(folder / "images")) {
    for (auto& picture : read_pictures(file)) {
      const fs::path path = folder / "masks" / (picture.name + ".png");
      cv::Mat mask = cv::imread(path.string(), cv::IMREAD_UNCHANGED);
      if (mask.empty() || mask.type() != CV_8U) throw std::runtime_error(path.string() + ": is no PNG of 8-bit grey");
      if (mask.size() != picture.values.size()) throw std::runtime_error(path.string() + ": has another size than its picture");
      set.pictures.push_back(std::move(picture));
      set.masks.push_back(std::move(mask));
    }
  }
  for (const auto& picture : set.pictures) set.pixels.push_back(window(picture));
  std::printf("%s: %zu pictures\n", part.c_str(), set.pictures.size());
  return set;
}

std::vector<std::string> classes_of(const Arguments& arguments) {
  std::vector<std::string> classes;
  std::stringstream list(arguments.text("classes", "background,nucleus,edge"));
  for (std::string name; std::getline(list, name, ',');) classes.push_back(name);
  return classes;
}

moco::SessionOptions options_of(const Arguments& arguments) {
  moco::SessionOptions options;
  options.task = moco::Task::segment;
  options.classes = classes_of(arguments);
  options.channels = 1;
  for (const double weight : arguments.numbers("weights", "1,1,1")) options.class_weights.push_back(static_cast<float>(weight));
  options.head = arguments.text("head", "unet:16");
  options.steps = arguments.number<std::uint32_t>("steps", 300, 1);
  options.batch = arguments.number<std::uint32_t>("batch", 4, 1);
  options.height = options.width = arguments.number<std::uint32_t>("size", 128, 8);
  options.learning_rate = arguments.number<float>("rate", 2e-3F, 0.0F);
  options.backbone_rate = arguments.number<float>("backbone-rate", 1.0F, 0.0F);
  options.threads = arguments.number<std::uint32_t>("threads", 0, 0);
  options.seed = arguments.number<std::uint64_t>("seed", 0, 0);
  options.augment = "microscopy";
  // Pieces of the input's size at their own scale: nuclei have one, pictures have many sizes.
  options.settings = "fit = { kind = \"tiles\", overlap = 32 }";
  return options;
}

/// Dice of each class, 2 |A ∩ B| / (|A| + |B|), over some pictures; NaN where neither has the class.
class Dice {
 public:
  void add(const cv::Mat& found, const cv::Mat& truth) {
    for (int y = 0; y < truth.rows; ++y) {
      for (int x = 0; x < truth.cols; ++x) {
        const std::uint8_t a = found.at<std::uint8_t>(y, x), b = truth.at<std::uint8_t>(y, x);
        if (b == 255) continue;
        ++size_[a], ++size_[b];
        if (a == b) ++both_[a];
      }
    }
  }
  [[nodiscard]] double of(std::size_t label) const {
    if (size_[label] == 0) return std::numeric_limits<double>::quiet_NaN();
    return 2.0 * static_cast<double>(both_[label]) / static_cast<double>(size_[label]);
  }

 private:
  std::array<std::size_t, 256> both_{}, size_{};
};

/// The class of every pixel of a picture.
cv::Mat mask_of(const moco::Model& model, const moco_pixels& pixels) {
  const moco::Predictions answer = model.predict({pixels});
  const moco::MaskView mask = answer.mask();
  if (mask.data == nullptr) throw std::runtime_error("the model does not segment");
  return cv::Mat(static_cast<int>(mask.height), static_cast<int>(mask.width), CV_8U, const_cast<std::uint8_t*>(mask.data)).clone();
}

void write(const cv::Mat& mask, const std::string& name, const fs::path& folder) {
  const fs::path path = folder / (name + ".png");
  if (!cv::imwrite(path.string(), mask)) throw std::runtime_error(path.string() + ": cannot be written");
}

/// Asks the model about each picture, prints Dice and writes masks where `masks` names a folder.
void examine(const moco::Model& model, const Set& test, const std::string& masks) {
  if (!masks.empty()) fs::create_directories(masks);
  const std::size_t classes = model.classes();
  Dice all;
  const auto print = [&](const std::string& name, const Dice& dice) {
    std::printf("%-24s", name.c_str());
    for (std::size_t label = 1; label < classes; ++label) std::printf("  %s %.3f", model.class_name(label).c_str(), dice.of(label));
    std::printf("\n");
  };
  for (std::size_t i = 0; i < test.pictures.size(); ++i) {
    const cv::Mat found = mask_of(model, test.pixels[i]);
    Dice dice;
    dice.add(found, test.masks[i]);
    all.add(found, test.masks[i]);
    print(test.pictures[i].name, dice);
    if (!masks.empty()) write(found, test.pictures[i].name, masks);
  }
  print("Dice over all pixels", all);
}

void train(const Arguments& arguments) {
  const Set train = read_set(arguments, "train"), test = read_set(arguments, "test");
  moco::SessionOptions options = options_of(arguments);
  options.progress = tell;
  moco::Session session = arguments.has("backbone") ? moco::Session(arguments.text("backbone"), options) : moco::Session::random(options);
  session.fit(train.samples(part_of(train.pictures.size(), 1.0, 0)));
  const moco::Model model = session.model();
  model.save(arguments.text("model"));
  examine(model, test, arguments.text("masks", ""));
}

void segment(const Arguments& arguments) {
  if (arguments.rest.empty()) throw std::invalid_argument("`segment` needs pictures");
  const moco::Model model = moco::Model::open(arguments.text("model"));
  const Window window(arguments.text("window", "auto"));
  const fs::path folder = arguments.text("masks");
  fs::create_directories(folder);
  for (const auto& file : arguments.rest) {
    for (const auto& picture : read_pictures(file)) {
      const cv::Mat mask = mask_of(model, window(picture));
      write(mask, picture.name, folder);
      std::printf("%s:", picture.name.c_str());
      for (std::size_t label = 1; label < model.classes(); ++label) {
        cv::Mat pieces;
        const int count = cv::connectedComponents(mask == static_cast<double>(label), pieces, 8) - 1;
        std::printf(" %s %d pixels in %d pieces", model.class_name(label).c_str(), cv::countNonZero(mask == static_cast<double>(label)), count);
      }
      std::printf("\n");
    }
  }
}

void compare(const Arguments& arguments) {
  const Set train = read_set(arguments, "train"), test = read_set(arguments, "test");
  const std::string backbone = arguments.text("backbone");
  const auto classes = classes_of(arguments);
  ::compare(train.pictures.size(), arguments.numbers("labels", "1,0.1"), arguments.number<std::uint64_t>("seeds", 3, 1),
            [&](const Trial& trial) {
              moco::SessionOptions options = options_of(arguments);
              options.seed = trial.seed;
              // The same network and preparation of pictures, with random weights.
              if (!trial.pretrained) options.arch = "random";
              moco::Session session(backbone, options);
              session.fit(train.samples(part_of(train.pictures.size(), trial.labels, trial.seed)));
              const moco::Model model = session.model();
              Dice dice;
              for (std::size_t i = 0; i < test.pictures.size(); ++i) {
                dice.add(mask_of(model, test.pixels[i]), test.masks[i]);
              }
              Measures measures{{"Dice", 0.0}};
              for (std::size_t label = 1; label < classes.size(); ++label) {
                measures[0].second += dice.of(label) / static_cast<double>(classes.size() - 1);
                measures.emplace_back("Dice " + classes[label], dice.of(label));
              }
              return measures;
            });
}

void tiles(const Arguments& arguments) {
  if (arguments.rest.empty()) throw std::invalid_argument("`tiles` needs pictures");
  const fs::path folder = arguments.text("out");
  const Window window(arguments.text("window", "auto"));
  fs::create_directories(folder);
  for (const auto& file : arguments.rest) {
    for (const auto& picture : read_pictures(file)) {
      const moco_pixels shown = window(picture);
      const double scale = 255.0 / (static_cast<double>(shown.white) - static_cast<double>(shown.black));
      cv::Mat grey;
      picture.values.convertTo(grey, CV_8U, scale, -scale * static_cast<double>(shown.black));
      int number = 0;
      for (const cv::Rect& tile : tiles_of(grey.size(), arguments.number<int>("size", 96, 8))) {
        write(grey(tile), picture.name + "_" + std::to_string(number++), folder);
      }
    }
  }
}

void wrap(const Arguments& arguments) {
  if (arguments.rest.empty()) throw std::invalid_argument("`wrap` needs pictures");
  const fs::path folder = arguments.text("out");
  fs::create_directories(folder);
  for (const auto& file : arguments.rest) {
    for (const auto& picture : read_pictures(file)) {
      write_dicom(picture, arguments.number<int>("bits", 12, 8), folder / (picture.name + ".dcm"));
    }
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> data{"train", "test", "backbone", "classes", "weights", "window", "steps", "batch", "size", "head", "rate",
                                      "backbone-rate", "threads"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), data.begin(), data.end());
    return more;
  };
  const Arguments arguments(argc, argv, {{"train", with({"model", "masks", "seed"})},
                                         {"segment", {"model", "masks", "window"}},
                                         {"compare", with({"labels", "seeds"})},
                                         {"tiles", {"out", "size", "window"}},
                                         {"wrap", {"out", "bits"}}});
  const bool takes_pictures = arguments.mode == "segment" || arguments.mode == "tiles" || arguments.mode == "wrap";
  if (!takes_pictures && !arguments.rest.empty()) throw std::invalid_argument("what is " + arguments.rest[0] + "?");
  if (arguments.mode == "train") train(arguments);
  if (arguments.mode == "segment") segment(arguments);
  if (arguments.mode == "compare") compare(arguments);
  if (arguments.mode == "tiles") tiles(arguments);
  if (arguments.mode == "wrap") wrap(arguments);
  return 0;
} catch (const std::invalid_argument& error) {
  std::cerr << "error: " << error.what() << "\n\n" << USAGE;
  return 2;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << "\n";
  return 1;
}
