#include "annotations.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <opencv2/core.hpp>
#include <set>
#include <sstream>
#include <stdexcept>

namespace fs = std::filesystem;

namespace {

/// A box with the name of its class.
struct Named {
  std::string name;
  moco_box box;
};

struct Unlabelled {
  fs::path path;
  std::vector<Named> objects;
};

[[noreturn]] void wrong(const fs::path& file, const std::string& what) {
  throw std::runtime_error(file.string() + ": " + what);
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) wrong(path, "cannot be read");
  return text.str();
}

/// The text between <tag> and </tag>, searched from `from` on, which moves behind it; false if there is none.
bool element(const std::string& xml, const std::string& tag, std::size_t& from, std::string& inside) {
  const std::size_t open = xml.find("<" + tag + ">", from);
  if (open == std::string::npos) return false;
  const std::size_t begin = open + tag.size() + 2, end = xml.find("</" + tag + ">", begin);
  if (end == std::string::npos) return false;
  inside = xml.substr(begin, end - begin);
  from = end + tag.size() + 3;
  return true;
}

std::string needed(const fs::path& file, const std::string& xml, const std::string& tag) {
  std::string inside;
  std::size_t from = 0;
  if (!element(xml, tag, from, inside)) wrong(file, "an object without <" + tag + ">");
  const auto first = inside.find_first_not_of(" \t\r\n"), last = inside.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? std::string() : inside.substr(first, last - first + 1);
}

float number(const fs::path& file, const std::string& xml, const std::string& tag) {
  const std::string text = needed(file, xml, tag);
  float value = 0.0F;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) wrong(file, "<" + tag + "> is `" + text + "`, no number");
  return value;
}

/// VOC counts pixels from 1 and includes the last one.
Unlabelled read_voc_file(const fs::path& file, const fs::path& images) {
  const std::string xml = read_file(file);
  Unlabelled found;
  std::string object;
  found.path = images / needed(file, xml, "filename");
  for (std::size_t from = 0; element(xml, "object", from, object);) {
    const std::string difficult = object.find("<difficult>") == std::string::npos ? "0" : needed(file, object, "difficult");
    const std::string edges = needed(file, object, "bndbox");
    moco_box box{number(file, edges, "xmin") - 1.0F, number(file, edges, "ymin") - 1.0F, number(file, edges, "xmax"),
                 number(file, edges, "ymax"), 0, difficult == "1" ? MOCO_BOX_IGNORED : 0U};
    if (!(box.x1 > box.x0 && box.y1 > box.y0)) wrong(file, "a <bndbox> of no area");
    found.objects.push_back({needed(file, object, "name"), box});
  }
  return found;
}

std::vector<Unlabelled> read_voc(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder / "Annotations")) {
    if (entry.path().extension() == ".xml") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::vector<Unlabelled> all;
  for (const auto& file : files) all.push_back(read_voc_file(file, folder / "JPEGImages"));
  return all;
}

/// COCO's boxes are [x, y, width, height]; `names` receives the categories by number.
std::vector<Unlabelled> read_coco(const fs::path& file, const fs::path& images, std::map<int, std::string>& names) {
  const cv::FileStorage json(file.string(), cv::FileStorage::READ | cv::FileStorage::FORMAT_JSON);
  if (!json.isOpened() || json["images"].empty() || json["annotations"].empty() || json["categories"].empty()) {
    wrong(file, "is no COCO file: it needs images, annotations and categories");
  }
  for (const auto& category : json["categories"]) names[static_cast<int>(category["id"])] = category["name"].string();
  std::map<int, Unlabelled> by_image;
  for (const auto& image : json["images"]) {
    by_image[static_cast<int>(image["id"])].path = images / image["file_name"].string();
  }
  for (const auto& annotation : json["annotations"]) {
    const int image = static_cast<int>(annotation["image_id"]), category = static_cast<int>(annotation["category_id"]);
    const cv::FileNode edges = annotation["bbox"];
    if (by_image.count(image) == 0) wrong(file, "an annotation of image " + std::to_string(image) + ", which is not there");
    if (names.count(category) == 0) wrong(file, "an annotation of category " + std::to_string(category) + ", which is not there");
    if (edges.size() != 4) wrong(file, "a bbox that is not [x, y, width, height]");
    const float x = edges[0], y = edges[1], width = edges[2], height = edges[3];
    if (!(width > 0.0F && height > 0.0F)) continue;  // COCO itself has some.
    const bool crowd = !annotation["iscrowd"].empty() && static_cast<int>(annotation["iscrowd"]) == 1;
    by_image[image].objects.push_back({names[category], {x, y, x + width, y + height, 0, crowd ? MOCO_BOX_IGNORED : 0U}});
  }
  std::vector<Unlabelled> all;
  for (auto& entry : by_image) all.push_back(std::move(entry.second));
  return all;
}

}  // namespace

Pictures read_annotations(const fs::path& place, const fs::path& images, const std::vector<std::string>& classes) {
  Pictures read;
  std::vector<Unlabelled> all;
  read.classes = classes;
  if (place.extension() == ".json") {
    std::map<int, std::string> names;
    all = read_coco(place, images.empty() ? place.parent_path() : images, names);
    if (classes.empty()) for (const auto& name : names) read.classes.push_back(name.second);
  } else {
    if (!fs::is_directory(place / "Annotations")) wrong(place, "is neither a COCO file (.json) nor a folder with Annotations");
    all = read_voc(place);
    if (classes.empty()) {
      std::set<std::string> names;
      for (const auto& picture : all) for (const auto& object : picture.objects) names.insert(object.name);
      read.classes.assign(names.begin(), names.end());
    }
  }
  if (all.empty()) wrong(place, "has no images");
  for (auto& picture : all) {
    Picture labelled{picture.path, {}};
    for (auto& object : picture.objects) {
      const auto found = std::find(read.classes.begin(), read.classes.end(), object.name);
      if (found == read.classes.end()) wrong(place, "has the class " + object.name + ", which was not there in training");
      object.box.label = static_cast<std::uint32_t>(found - read.classes.begin());
      labelled.boxes.push_back(object.box);
    }
    read.pictures.push_back(std::move(labelled));
  }
  return read;
}
