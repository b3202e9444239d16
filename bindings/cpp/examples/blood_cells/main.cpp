// Finds blood cells in photographs through a microscope, or any objects in any pictures that OpenCV reads.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <stdexcept>

#include "../common/arguments.hpp"
#include "../common/compare.hpp"
#include "../common/progress.hpp"
#include "../common/tiles.hpp"
#include "annotations.hpp"
#include "draw.hpp"

namespace fs = std::filesystem;

namespace {

const char* const USAGE =
    "blood_cells train   --train DATA --test DATA --model FILE [--backbone FILE] [--drawn FOLDER] [options]\n"
    "  learns to detect, prints average precision on --test, writes the model and the test pictures with what was found\n"
    "blood_cells detect  --model FILE --drawn FOLDER [--score 0.4] PICTURE...\n"
    "  draws what is found into a PNG a picture\n"
    "blood_cells compare --train DATA --test DATA --backbone FILE [--labels 1,0.1] [--seeds 3] [options]\n"
    "  the same training from random weights and from the backbone, with all labelled pictures and with a tenth of them\n"
    "blood_cells tiles   --out FOLDER [--size 120] PICTURE...\n"
    "  cuts pictures into squares, for `moco-train pretrain`\n"
    "DATA is a folder of Pascal VOC (Annotations, JPEGImages) or a COCO file (.json; pictures in --train-images,\n"
    "--test-images, else beside it). A backbone is a file of moco-train, or hf://owner/name.\n"
    "options: --steps 150  --batch 4  --height 144  --width 192  --head fcos:width=48,convs=2,levels=2-4  --rate 0.003\n"
    "         --backbone-rate 1 (times --rate)  --threads 0 (all cores)  --seed 0 (not of compare)\n";

moco_pixels pixels_of(const cv::Mat& picture) {
  return moco::pixels(picture.data, static_cast<std::uint32_t>(picture.cols), static_cast<std::uint32_t>(picture.rows), 3, picture.step);
}

/// Pictures in memory, in RGB, with their boxes.
struct Set {
  std::vector<std::string> classes;
  std::vector<fs::path> paths;
  std::vector<cv::Mat> pictures;
  std::vector<std::vector<moco_box>> boxes;

  /// Labelled pictures for libmoco, which point into this set.
  [[nodiscard]] moco::Samples samples(const std::vector<std::size_t>& indices) const {
    std::vector<moco::Sample> all;
    for (const std::size_t i : indices) all.push_back({pixels_of(pictures[i]), moco::Truth::of_boxes(boxes[i]), nullptr});
    return all;
  }
  [[nodiscard]] moco::Samples samples() const { return samples(part_of(pictures.size(), 1.0, 0)); }
};

cv::Mat read_picture(const fs::path& path) {
  cv::Mat picture = cv::imread(path.string(), cv::IMREAD_COLOR);
  if (picture.empty()) throw std::runtime_error(path.string() + ": OpenCV cannot read it");
  cv::cvtColor(picture, picture, cv::COLOR_BGR2RGB);
  return picture;
}

void write(const cv::Mat& picture, const fs::path& path) {
  if (!cv::imwrite(path.string(), picture)) throw std::runtime_error(path.string() + ": cannot be written");
}

Set read_set(const Arguments& arguments, const std::string& part, const std::vector<std::string>& classes) {
  Pictures read = read_annotations(arguments.text(part), arguments.text(part + "-images", ""), classes);
  Set set;
  set.classes = read.classes;
  std::size_t boxes = 0;
  for (auto& picture : read.pictures) {
    set.pictures.push_back(read_picture(picture.path));
    set.paths.push_back(std::move(picture.path));
    boxes += picture.boxes.size();
    set.boxes.push_back(std::move(picture.boxes));
  }
  std::printf("%s: %zu pictures, %zu boxes of %zu classes\n", part.c_str(), set.pictures.size(), boxes, set.classes.size());
  return set;
}

moco::SessionOptions options_of(const Arguments& arguments, const Set& train) {
  moco::SessionOptions options;
  options.task = moco::Task::detect;
  options.classes = train.classes;
  options.head = arguments.text("head", "fcos:width=48,convs=2,levels=2-4");
  options.steps = arguments.number<std::uint32_t>("steps", 150, 1);
  options.batch = arguments.number<std::uint32_t>("batch", 4, 1);
  options.height = arguments.number<std::uint32_t>("height", 144, 8);
  options.width = arguments.number<std::uint32_t>("width", 192, 8);
  options.learning_rate = arguments.number<float>("rate", 3e-3F, 0.0F);
  options.backbone_rate = arguments.number<float>("backbone-rate", 1.0F, 0.0F);
  options.threads = arguments.number<std::uint32_t>("threads", 0, 0);
  options.seed = arguments.number<std::uint64_t>("seed", 0, 0);
  options.augment = "microscopy";
  return options;
}

void print(const moco::Metrics& metrics) {
  for (const auto& [name, value] : metrics.all()) std::printf("%-24s %6.1f %%\n", name.c_str(), 100.0 * value);
}

/// Writes each picture with its boxes as PNG.
void draw_all(const moco::Model& model, const std::vector<fs::path>& paths, const fs::path& folder, float score) {
  fs::create_directories(folder);
  std::vector<std::string> classes;
  for (std::size_t label = 0; label < model.classes(); ++label) classes.push_back(model.class_name(label));
  moco::PredictOptions options;
  options.score = score;
  for (const auto& path : paths) {
    cv::Mat picture = read_picture(path);
    const auto found = model.predict({pixels_of(picture)}, options).detections();
    cv::cvtColor(picture, picture, cv::COLOR_RGB2BGR);
    draw(picture, found, classes);
    const fs::path out = folder / path.stem().concat(".png");
    write(picture, out);
    std::printf("%s: %zu objects\n", out.string().c_str(), found.size());
  }
}

void train(const Arguments& arguments) {
  const Set train = read_set(arguments, "train", {}), test = read_set(arguments, "test", train.classes);
  moco::SessionOptions options = options_of(arguments, train);
  options.progress = tell;
  moco::Session session = arguments.has("backbone") ? moco::Session(arguments.text("backbone"), options) : moco::Session::random(options);
  session.fit(train.samples());
  const moco::Model model = session.model();
  model.save(arguments.text("model"));
  print(model.evaluate(test.samples()));
  if (arguments.has("drawn")) draw_all(model, test.paths, arguments.text("drawn"), 0.4F);
}

void detect(const Arguments& arguments) {
  if (arguments.rest.empty()) throw std::invalid_argument("`detect` needs pictures");
  draw_all(moco::Model::open(arguments.text("model")), {arguments.rest.begin(), arguments.rest.end()}, arguments.text("drawn"),
           arguments.number<float>("score", 0.4F, 0.0F));
}

void compare(const Arguments& arguments) {
  const Set train = read_set(arguments, "train", {}), test = read_set(arguments, "test", train.classes);
  const std::string backbone = arguments.text("backbone");
  ::compare(train.pictures.size(), arguments.numbers("labels", "1,0.1"), arguments.number<std::uint64_t>("seeds", 3, 1),
            [&](const Trial& trial) {
              moco::SessionOptions options = options_of(arguments, train);
              options.seed = trial.seed;
              // The same network and preparation of pictures, with random weights.
              if (!trial.pretrained) options.arch = "random";
              moco::Session session(backbone, options);
              session.fit(train.samples(part_of(train.pictures.size(), trial.labels, trial.seed)));
              const moco::Metrics found = session.evaluate(test.samples());
              Measures measures{{"AP", found["map"]}, {"AP50", found["ap50"]}};
              for (const auto& name : train.classes) measures.emplace_back("AP50 " + name, found["ap50:" + name]);
              return measures;
            });
}

void tiles(const Arguments& arguments) {
  if (arguments.rest.empty()) throw std::invalid_argument("`tiles` needs pictures");
  const fs::path folder = arguments.text("out");
  fs::create_directories(folder);
  for (const std::string& file : arguments.rest) {
    const cv::Mat picture = cv::imread(file, cv::IMREAD_COLOR);
    if (picture.empty()) throw std::runtime_error(file + ": OpenCV cannot read it");
    int number = 0;
    for (const cv::Rect& tile : tiles_of(picture.size(), arguments.number<int>("size", 120, 8))) {
      write(picture(tile), folder / (fs::path(file).stem().string() + "_" + std::to_string(number++) + ".png"));
    }
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> data{"train", "train-images", "test", "test-images", "backbone", "steps", "batch", "height", "width",
                                      "head", "rate", "backbone-rate", "threads"};
  auto with = [&](std::vector<std::string> more) { more.insert(more.begin(), data.begin(), data.end()); return more; };
  const Arguments arguments(argc, argv, {{"train", with({"model", "drawn", "seed"})},
                                         {"detect", {"model", "drawn", "score"}},
                                         {"tiles", {"out", "size"}},
                                         {"compare", with({"labels", "seeds"})}});
  const bool takes_pictures = arguments.mode == "detect" || arguments.mode == "tiles";
  if (!takes_pictures && !arguments.rest.empty()) throw std::invalid_argument("what is " + arguments.rest[0] + "?");
  if (arguments.mode == "train") train(arguments);
  if (arguments.mode == "detect") detect(arguments);
  if (arguments.mode == "compare") compare(arguments);
  if (arguments.mode == "tiles") tiles(arguments);
  return 0;
} catch (const std::invalid_argument& error) {
  std::cerr << "error: " << error.what() << "\n\n" << USAGE;
  return 2;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << "\n";
  return 1;
}
