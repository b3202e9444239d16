// finetune backbone.safetensors TRAIN TEST head.safetensors
//
// Fits a linear head on frozen features. TRAIN and TEST hold one folder of pictures a class.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <moco.hpp>
#include <string>
#include <vector>

namespace fs = std::filesystem;

struct Pictures {
  std::vector<std::string> paths;
  std::vector<std::uint32_t> labels;
};

static std::vector<std::string> entries(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

static Pictures find(const fs::path& folder, const std::vector<std::string>& classes) {
  Pictures found;
  for (std::uint32_t label = 0; label < classes.size(); ++label) {
    for (const auto& name : entries(folder / classes[label])) {
      found.paths.push_back((folder / classes[label] / name).string());
      found.labels.push_back(label);
    }
  }
  return found;
}

static double accuracy(const moco::Prediction& predicted, const std::vector<std::uint32_t>& labels) {
  std::size_t hits = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) hits += predicted.labels[i] == labels[i];
  return 100.0 * static_cast<double>(hits) / static_cast<double>(labels.size());
}

int main(int argc, char** argv) try {
  if (argc != 5) {
    std::cerr << "usage: finetune backbone.safetensors TRAIN TEST head.safetensors\n";
    return 2;
  }
  const moco::Backbone backbone(argv[1]);
  const auto classes = entries(argv[2]);
  const Pictures train = find(argv[2], classes), test = find(argv[3], classes);
  const moco::Features features = backbone.extract(train.paths), held_out = backbone.extract(test.paths);

  moco::FitOptions options;
  options.class_names = classes;
  options.progress = [](const moco_fit_progress& p) {
    if (p.epoch % 25 == 0) {
      std::fprintf(stderr, "%s: epoch %u of %u, loss %.3f\n", p.sweeping ? "learning rates" : "head", p.epoch, p.epochs, p.loss);
    }
    return true;
  };
  moco::Head::fit(features, train.labels, classes.size(), options).save(argv[4]);

  const moco::Head head = moco::Head::open(argv[4]);
  const auto predicted = head.predict(held_out);
  std::printf("%s: %zu classes, %zu + %zu pictures, features of %zu values\n", backbone.arch().c_str(), classes.size(),
              train.paths.size(), test.paths.size(), features.dim());
  std::printf("%s: %s\n", test.paths.at(0).c_str(), head.class_name(predicted.labels.at(0)).c_str());
  std::printf("accuracy %.1f %% on %zu pictures that were held out (%.1f %% on those it was fitted on)\n",
              accuracy(predicted, test.labels), test.labels.size(), accuracy(head.predict(features), train.labels));
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << "\n";
  return 1;
}
