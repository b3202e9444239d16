// program FOLDER: moco.hpp, used rightly and wrongly, from many threads.
#include <algorithm>
#include <atomic>
#include <thread>
#include <type_traits>

#include "check.hpp"

std::size_t taps_seen_from_elsewhere(const moco::Backbone& backbone);

static_assert(!std::is_copy_constructible<moco::Backbone>::value && std::is_move_constructible<moco::Backbone>::value);
static_assert(!std::is_copy_constructible<moco::Head>::value && std::is_move_assignable<moco::Head>::value);

int main(int argc, char** argv) {
  CHECK(argc == 2);
  const std::string folder = argv[1];
  std::atomic<int> messages{0};
  moco::set_log([&](moco_log_level level, const std::string& message) {
    CHECK(level >= MOCO_LOG_LEVEL_ERROR && !message.empty());
    ++messages;
    throw std::runtime_error("what a receiver throws goes nowhere");
  });
  moco::Backbone opened(folder);
  CHECK(messages > 0);
  const int until_now = messages;
  moco::set_log(nullptr);
  const moco::Backbone backbone = std::move(opened);
  CHECK(taps_seen_from_elsewhere(backbone) == 6);
  CHECK(backbone.dim() == 64 && backbone.arch() == "resnet18");
  throws(MOCO_CODE_IO, "absent", [&] { moco::Backbone absent(folder + "/absent"); });

  std::vector<std::string> paths;
  for (int i = 0; i < 4; ++i) paths.push_back(folder + "/" + std::to_string(i) + ".jpg");
  const moco::Features features = backbone.extract(paths);
  CHECK((features.shape() == std::vector<std::size_t>{4, 64}) && features.tap_name() == "pooled");
  throws(MOCO_CODE_INVALID_ARGUMENT, "row", [&] { (void)features.row(4); });
  throws(MOCO_CODE_IO, "nowhere", [&] { (void)backbone.extract({"nowhere.png", "elsewhere.png"}); });
  CHECK(messages == until_now);

  // Many threads, one backbone, one head: const means shared.
  const std::vector<std::uint32_t> labels = {0, 1, 0, 1};
  moco::FitOptions options;
  options.class_names = {"even", "odd"};
  options.epochs = 20;
  std::size_t epochs = 0;
  options.progress = [&](const moco_fit_progress&) { return ++epochs > 0; };
  const moco::Head head = moco::Head::fit(features, labels, 2, options);
  CHECK(epochs == 40 && head.class_name(1) == "odd" && head.class_name(2).empty());
  const moco::Prediction expected = head.predict(features);
  CHECK(expected.probabilities.size() == 8);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 4; ++i) {
        const std::size_t which = static_cast<std::size_t>(t + i) % paths.size();
        const moco::Features one = backbone.extract(std::vector<std::string>{paths[which]});
        CHECK(std::equal(one.row(0), one.row(0) + one.dim(), features.row(which)));
        CHECK(head.predict(one).labels[0] == expected.labels[which]);
        throws(MOCO_CODE_IO, "absent", [&] { (void)backbone.extract(std::vector<std::string>{folder + "/absent.jpg"}); });
      }
    });
  }
  for (auto& thread : threads) thread.join();

  const std::vector<std::uint8_t> grey(50 * 40, 90);
  const std::vector<moco_pixels> images = {moco::pixels(grey.data(), 50, 40, 1), moco::pixels(grey.data(), 40, 50, 1)};
  CHECK(backbone.extract(images).images() == 2);
  CHECK(head.predict(backbone, images).labels.size() == 2);
  const std::vector<std::uint16_t> ct(50 * 40, 1024);
  CHECK(backbone.extract({moco::pixels(ct.data(), 50, 40, 1, 900.0F, 1200.0F)}).images() == 1);
  const moco::ImageFile mr(folder + "/mr.dcm");
  CHECK(mr.info().bits == 16 && std::string(mr.info().modality) == "MR");
  const moco::Frame slice = mr.read();
  CHECK(backbone.extract({slice.pixels()}).images() == 1);
  throws(MOCO_CODE_INVALID_ARGUMENT, "frame", [&] { (void)mr.read(7); });

  head.save(folder + "/head.safetensors");
  moco::Head other = moco::Head::open(folder + "/head.safetensors");
  CHECK(other.predict(features).probabilities == expected.probabilities);
  other = moco::Head::fit(std::vector<float>{0.0F, 1.0F, 2.0F, 3.0F}, 1, labels, 2);
  CHECK(other.dim() == 1);
  throws(MOCO_CODE_INVALID_ARGUMENT, "reads 1 features", [&] { (void)other.predict(features); });

  throws(MOCO_CODE_INVALID_ARGUMENT, "class names", [&] {
    moco::FitOptions wrong;
    wrong.class_names = {"one"};
    (void)moco::Head::fit(features, labels, 2, wrong);
  });
  options.progress = [](const moco_fit_progress&) { return false; };
  throws(MOCO_CODE_CANCELLED, "cancelled", [&] { (void)moco::Head::fit(features, labels, 2, options); });
  options.progress = [](const moco_fit_progress&) -> bool { throw std::runtime_error("from the callback"); };
  try {
    (void)moco::Head::fit(features, labels, 2, options);
    CHECK(!"the callback's exception arrives");
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()) == "from the callback");
  }
  return 0;
}
