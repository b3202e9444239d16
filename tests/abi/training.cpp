// program FOLDER: sessions and models of moco.hpp, used rightly and wrongly, from many threads.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <type_traits>

#include "check.hpp"

static_assert(!std::is_copy_constructible<moco::Session>::value && std::is_move_constructible<moco::Session>::value);
static_assert(!std::is_copy_constructible<moco::Model>::value && std::is_move_assignable<moco::Model>::value);

constexpr std::uint32_t kSide = 32;

/// An image with a light square on a dark ground, and where it is.
static moco::Sample drawn(std::size_t index) {
  auto pixels = std::make_shared<std::vector<std::uint8_t>>(kSide * kSide, std::uint8_t{40});
  std::vector<std::uint8_t> mask(kSide * kSide);
  const std::size_t left = 3 + index, top = 10 - index, side = 12;
  for (std::size_t y = top; y < top + side; ++y) {
    for (std::size_t x = left; x < left + side; ++x) {
      (*pixels)[y * kSide + x] = static_cast<std::uint8_t>(190 + (x + y) % 30);
      mask[y * kSide + x] = 1;
    }
  }
  return moco::Sample{moco::pixels(pixels->data(), kSide, kSide, 1), moco::Truth::of_mask(std::move(mask)), pixels};
}

static moco::SessionOptions segmenting() {
  moco::SessionOptions options;
  options.task = moco::Task::segment;
  options.classes = {"ground", "square"};
  options.head = "unet:4";
  options.channels = 1;
  options.height = kSide;
  options.batch = 4;
  options.epochs = 3;
  options.learning_rate = 0.01F;
  options.device = "cpu";
  return options;
}

static std::vector<std::uint8_t> bytes(const moco::MaskView& mask) {
  return std::vector<std::uint8_t>(mask.data, mask.data + mask.width * mask.height);
}

static void a_model_is_shared_between_threads(const moco::Model& model, const moco::Samples& samples) {
  std::vector<std::vector<std::uint8_t>> expected;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    expected.push_back(bytes(model.predict({samples.at(i).pixels}).mask()));
    CHECK(expected.back().size() == kSide * kSide);
  }
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t which = (t + i) % samples.size();
        const moco::Sample sample = samples.at(which);
        const moco::Predictions answer = model.predict({sample.pixels, sample.pixels});
        CHECK(bytes(answer.mask(1)) == expected[which]);
        throws(MOCO_CODE_INVALID_ARGUMENT, "no answer 2", [&] { (void)answer.mask(2); });
        throws(MOCO_CODE_IO, "absent", [&] { (void)model.predict(std::vector<std::string>{"absent.png"}); });
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

static void a_session_is_cancelled_by_another_thread(const std::string& folder, const moco::Samples& samples) {
  moco::SessionOptions options = segmenting();
  options.epochs = 100000;
  std::atomic<int> steps{0};
  options.progress = [&](const moco_session_progress& progress) {
    if (progress.event == MOCO_SESSION_EVENT_STEP) ++steps;
    return true;
  };
  moco::Session session(folder, options);
  std::thread other([&] {
    while (steps < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    throws(MOCO_CODE_INVALID_ARGUMENT, "busy", [&] { (void)session.model(); });
    session.cancel();
  });
  CHECK(!session.fit(samples));
  other.join();
  // It moves, and goes on.
  moco::Session moved = std::move(session);
  std::thread again([&] { moved.cancel(); });
  CHECK(!moved.fit(samples));
  again.join();
  CHECK(moved.model().classes() == 2);
}

static void what_callbacks_throw_arrives(const std::string& folder, const moco::Samples& samples) {
  moco::SessionOptions options = segmenting();
  options.progress = [](const moco_session_progress&) -> bool { throw std::runtime_error("from progress"); };
  const auto arrives = [](const std::string& what, const auto& body) {
    try {
      body();
    } catch (const std::runtime_error& error) {
      if (error.what() == what) return;
      std::cerr << "expected `" << what << "`, got `" << error.what() << "`\n";
    }
    CHECK(!"the callback's exception arrives");
  };
  moco::Session session(folder, options);
  arrives("from progress", [&] { session.fit(samples); });
  moco::Session quiet(folder, segmenting());
  const moco::Samples broken(4, [](std::size_t index) -> moco::Sample {
    if (index == 2) throw std::runtime_error("from read");
    return drawn(index);
  });
  arrives("from read", [&] { quiet.fit(broken); });
  arrives("from read", [&] { quiet.fit(samples, broken); });
  arrives("from read", [&] { (void)quiet.evaluate(broken); });
  arrives("from read", [&] { (void)quiet.model().evaluate(broken); });
  throws(MOCO_CODE_INVALID_ARGUMENT, "a mask has 3 values", [&] {
    (void)quiet.evaluate({{moco::Sample{drawn(0).pixels, moco::Truth::of_mask({0, 1, 0}), nullptr}}});
  });
  throws(MOCO_CODE_INVALID_ARGUMENT, "one truth", [&] { (void)quiet.step({drawn(0).pixels}, {}); });
  throws(MOCO_CODE_INVALID_ARGUMENT, "`read` is empty", [] { moco::Samples(1, nullptr); });
  throws(MOCO_CODE_INVALID_ARGUMENT, "class weights", [&] {
    moco::SessionOptions wrong = segmenting();
    wrong.class_weights = {1.0F};
    (void)moco::Session::random(wrong);
  });
}

int main(int argc, char** argv) {
  CHECK(argc == 2);
  const std::string folder = argv[1];
  std::vector<moco::Sample> held;
  for (std::size_t i = 0; i < 8; ++i) held.push_back(drawn(i));
  const moco::Samples samples(std::move(held));
  std::atomic<int> reads{0};
  const moco::Samples read_again(
      8, [&](std::size_t index) { ++reads; return drawn(index); }, true);

  moco::SessionOptions options = segmenting();
  options.checkpoint = folder + "/checkpoint.safetensors";
  moco::Session session(folder, options);
  CHECK(session.fit(samples, read_again));
  CHECK(reads >= 3 * 8);
  const moco::Metrics metrics = session.evaluate(read_again);
  CHECK(metrics.images() == 8 && metrics.all().front().first == "mean_dice");
  CHECK(metrics.all().front().second == metrics["mean_dice"]);
  const moco::Model model = session.model();
  CHECK(model.task() == moco::Task::segment && model.class_name(1) == "square" && model.channels() == 1);
  CHECK(model.evaluate(samples)["mean_dice"] == metrics["mean_dice"]);
  a_model_is_shared_between_threads(model, samples);

  // In memory or read again, from a checkpoint or not: the same weights.
  model.save(folder + "/one.safetensors");
  moco::Session other(folder, segmenting());
  CHECK(other.fit(read_again, samples));
  const moco::Model same = other.model();
  const moco::Model opened = moco::Model::open(folder + "/one.safetensors");
  moco::Session resumed = moco::Session::resume(folder + "/checkpoint.safetensors");
  const moco::Model again = resumed.model();
  for (const moco::Model* m : {&same, &opened, &again}) {
    CHECK(bytes(m->predict({samples.at(5).pixels}).mask()) == bytes(model.predict({samples.at(5).pixels}).mask()));
  }
  a_session_is_cancelled_by_another_thread(folder, samples);
  what_callbacks_throw_arrives(folder, samples);
  return 0;
}
