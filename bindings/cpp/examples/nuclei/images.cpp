#include "images.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>

#include <dcmtk/config/osconfig.h>
#include <dcmtk/dcmdata/dcrledrg.h>
#include <dcmtk/dcmdata/dctk.h>
#include <dcmtk/dcmimgle/dcmimage.h>
#include <dcmtk/dcmjpeg/djdecode.h>
#include <dcmtk/dcmjpls/djdecode.h>

namespace fs = std::filesystem;

namespace {

[[noreturn]] void wrong(const fs::path& file, const std::string& what) {
  throw std::runtime_error(file.string() + ": " + what);
}

/// DCMTK's decoders of compressed pixels, for as long as the program runs.
void register_decoders() {
  static const struct Decoders {
    Decoders() {
      DJDecoderRegistration::registerCodecs();
      DJLSDecoderRegistration::registerCodecs();
      DcmRLEDecoderRegistration::registerCodecs();
      OFLog::configure(OFLogger::FATAL_LOG_LEVEL);  // What is wrong with a file becomes an exception.
    }
    ~Decoders() {
      DJDecoderRegistration::cleanup();
      DJLSDecoderRegistration::cleanup();
      DcmRLEDecoderRegistration::cleanup();
    }
  } decoders;
}

std::string frame_name(const fs::path& file, std::size_t frame, std::size_t frames) {
  std::string name = file.stem().string();
  if (file.extension() == ".gz") name = fs::path(name).stem().string();
  return frames == 1 ? name : name + "_" + std::to_string(frame);
}

/// One frame out of what DCMTK made of all of them: modality values, after rescaling.
cv::Mat copy_frame(const fs::path& file, const DiPixel& pixels, int rows, int columns, std::size_t frame) {
  const auto at = [&](auto* data) { return const_cast<void*>(static_cast<const void*>(data + frame * rows * columns)); };
  const void* data = pixels.getData();
  cv::Mat values;
  switch (pixels.getRepresentation()) {
    case EPR_Uint8: return cv::Mat(rows, columns, CV_8U, at(static_cast<const Uint8*>(data))).clone();
    case EPR_Uint16: return cv::Mat(rows, columns, CV_16U, at(static_cast<const Uint16*>(data))).clone();
    case EPR_Sint16: return cv::Mat(rows, columns, CV_16S, at(static_cast<const Sint16*>(data))).clone();
    case EPR_Sint8: cv::Mat(rows, columns, CV_8S, at(static_cast<const Sint8*>(data))).convertTo(values, CV_16S); return values;
    case EPR_Sint32: cv::Mat(rows, columns, CV_32S, at(static_cast<const Sint32*>(data))).convertTo(values, CV_32F); return values;
    default: wrong(file, "has pixels of more than 16 bits");
  }
}

/// By libmoco.
std::vector<Picture> read_slices(const fs::path& file) {
  const moco::ImageFile image(file.string());
  const std::size_t frames = image.info().frames;
  std::vector<Picture> pictures(frames);
  for (std::size_t i = 0; i < frames; ++i) {
    const moco::Frame frame = image.read(i);
    const moco_pixels pixels = frame.pixels();
    if (pixels.channels != 1) wrong(file, "is in colour; pictures of one channel are expected");
    static const int types[] = {CV_8U, CV_16U, CV_32F, CV_16S};  // In the order of moco_pixel_type.
    const cv::Mat values(static_cast<int>(pixels.height), static_cast<int>(pixels.width), types[pixels.type],
                         const_cast<void*>(pixels.data), pixels.row_stride);
    Picture& picture = pictures[i];
    picture.name = frame_name(file, i, frames);
    picture.values = values.clone();
    cv::minMaxLoc(picture.values, &picture.smallest, &picture.largest);
    picture.low = pixels.black;
    picture.high = pixels.white;
  }
  return pictures;
}

std::vector<Picture> read_dicom(const fs::path& file) {
  register_decoders();
  DcmFileFormat format;
  const OFCondition loaded = format.loadFile(file.c_str());
  if (loaded.bad()) wrong(file, std::string("DCMTK cannot read it: ") + loaded.text());
  DicomImage image(format.getDataset(), format.getDataset()->getOriginalXfer(), CIF_DecompressCompletePixelData);
  if (image.getStatus() != EIS_Normal) return read_slices(file);  // Debian's DCMTK has no JPEG 2000.
  const DiPixel* pixels = image.getInterData();
  if (!image.isMonochrome() || pixels == nullptr) wrong(file, "is in colour; pictures of one channel are expected");
  const int rows = static_cast<int>(image.getHeight()), columns = static_cast<int>(image.getWidth());
  const auto frames = static_cast<std::size_t>(image.getFrameCount());
  if (pixels->getCount() < frames * static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns)) {
    wrong(file, "has fewer pixels than its size says");
  }
  std::vector<Picture> pictures(frames);
  for (std::size_t i = 0; i < frames; ++i) {
    Picture& picture = pictures[i];
    picture.name = frame_name(file, i, frames);
    picture.values = copy_frame(file, *pixels, rows, columns, i);
    picture.inverted = image.getPhotometricInterpretation() == EPI_Monochrome1;
    image.getMinMaxValues(picture.smallest, picture.largest, 1);
    double centre = 0.0, width = 0.0;
    if (image.getWindowCount() > 0 && image.setWindow(0) && image.getWindow(centre, width)) {
      // DICOM PS3.3, C.11.2.1.2: the window of width w around c begins at c - 0.5 - (w - 1) / 2.
      picture.low = centre - 0.5 - (width - 1.0) / 2.0;
      picture.high = picture.low + (width - 1.0);
    }
  }
  return pictures;
}

std::vector<Picture> read_other(const fs::path& file) {
  Picture picture;
  picture.name = file.stem().string();
  picture.values = cv::imread(file.string(), cv::IMREAD_UNCHANGED);
  if (picture.values.empty()) wrong(file, "OpenCV cannot read it");
  if (picture.values.channels() != 1) wrong(file, "is in colour; pictures of one channel are expected");
  switch (picture.values.depth()) {
    case CV_8U: picture.largest = 255.0; break;
    case CV_16U: picture.largest = 65535.0; break;
    default: wrong(file, "has values of another kind than 8 or 16 bits");
  }
  return {picture};
}

bool is_dicom(const fs::path& file) {
  if (file.extension() == ".dcm") return true;
  char magic[132] = {};
  std::ifstream(file, std::ios::binary).read(magic, sizeof magic);
  return std::string(magic + 128, 4) == "DICM";
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// Values below which a share of the pixels lies.
std::pair<double, double> percentiles(const cv::Mat& picture, double low, double high) {
  cv::Mat copy;
  picture.convertTo(copy, CV_32F);
  std::vector<float> values(copy.begin<float>(), copy.end<float>());
  const auto at = [&](double share) {
    const auto nth = values.begin() + std::lround(share * static_cast<double>(values.size() - 1));
    std::nth_element(values.begin(), nth, values.end());
    return static_cast<double>(*nth);
  };
  const double black = at(low), white = at(high);
  return {black, white > black ? white : black + 1.0};
}

}  // namespace

Window::Window(const std::string& text) : kind_(text) {
  if (text == "auto" || text == "file" || text == "full") return;
  const std::size_t comma = text.find(',');
  const auto number = [&](std::size_t from, std::size_t to, double& value) {
    const auto [stop, error] = std::from_chars(text.data() + from, text.data() + to, value);
    return error == std::errc() && stop == text.data() + to;
  };
  if (comma == std::string::npos || !number(0, comma, low_) || !number(comma + 1, text.size(), high_) || !(low_ < high_)) {
    throw std::invalid_argument("a window is auto, file, full or LOW,HIGH (two numbers), not `" + text + "`");
  }
}

moco_pixels Window::operator()(const Picture& picture) const {
  double black = low_, white = high_;
  if (kind_ == "auto") {
    std::tie(black, white) = percentiles(picture.values, 0.005, 0.998);
  } else if (kind_ == "file" && picture.low < picture.high) {
    std::tie(black, white) = std::pair(picture.low, picture.high);
  } else if (kind_ == "file" || kind_ == "full") {
    std::tie(black, white) = std::pair(picture.smallest, picture.largest);
  }
  if (picture.inverted) std::swap(black, white);
  const cv::Mat& values = picture.values;
  const int depth = values.depth();
  const moco_pixel_type type = depth == CV_8U    ? MOCO_PIXEL_TYPE_U8
                               : depth == CV_16U ? MOCO_PIXEL_TYPE_U16
                               : depth == CV_16S ? MOCO_PIXEL_TYPE_I16
                                                 : MOCO_PIXEL_TYPE_F32;
  moco_pixels pixels{};
  pixels.data = values.data;
  pixels.row_stride = values.step;
  pixels.width = static_cast<std::uint32_t>(values.cols);
  pixels.height = static_cast<std::uint32_t>(values.rows);
  pixels.channels = 1;
  pixels.type = type;
  pixels.black = static_cast<float>(black);
  pixels.white = static_cast<float>(white);
  return pixels;
}

std::vector<Picture> read_pictures(const fs::path& file) {
  if (is_dicom(file)) return read_dicom(file);
  const std::string name = file.filename().string();
  if (ends_with(name, ".nii") || ends_with(name, ".nii.gz")) return read_slices(file);
  return read_other(file);
}

std::vector<fs::path> files_of(const fs::path& folder) {
  if (!fs::is_directory(folder)) wrong(folder, "is no folder");
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename().string()[0] != '.') files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) wrong(folder, "holds no files");
  return files;
}

void write_dicom(const Picture& picture, int bits, const fs::path& file) {
  if (bits < 8 || bits > 16) throw std::invalid_argument("--bits must be 8 to 16");
  const double top = std::pow(2.0, bits) - 1.0, scale = top / (picture.largest - picture.smallest);
  cv::Mat values;
  picture.values.convertTo(values, CV_16U, scale, -picture.smallest * scale);
  char uid[100];
  DcmFileFormat format;
  DcmDataset& data = *format.getDataset();
  OFCondition status = EC_Normal;
  const auto text = [&](const DcmTagKey& tag, const std::string& value) {
    if (status.good()) status = data.putAndInsertString(tag, value.c_str());
  };
  const auto number = [&](const DcmTagKey& tag, int value) {
    if (status.good()) status = data.putAndInsertUint16(tag, static_cast<Uint16>(value));
  };
  text(DCM_SOPClassUID, UID_SecondaryCaptureImageStorage);
  text(DCM_SOPInstanceUID, dcmGenerateUniqueIdentifier(uid, SITE_INSTANCE_UID_ROOT));
  text(DCM_StudyInstanceUID, dcmGenerateUniqueIdentifier(uid, SITE_STUDY_UID_ROOT));
  text(DCM_SeriesInstanceUID, dcmGenerateUniqueIdentifier(uid, SITE_SERIES_UID_ROOT));
  text(DCM_PatientID, picture.name.substr(0, 64));
  text(DCM_Modality, "GM");
  text(DCM_ConversionType, "WSD");
  text(DCM_PhotometricInterpretation, "MONOCHROME2");
  number(DCM_SamplesPerPixel, 1);
  number(DCM_Rows, values.rows);
  number(DCM_Columns, values.cols);
  number(DCM_BitsAllocated, 16);
  number(DCM_BitsStored, bits);
  number(DCM_HighBit, bits - 1);
  number(DCM_PixelRepresentation, 0);
  if (status.good()) {
    status = data.putAndInsertUint16Array(DCM_PixelData, values.ptr<Uint16>(), static_cast<unsigned long>(values.total()));
  }
  if (status.good()) status = format.saveFile(file.c_str(), EXS_LittleEndianExplicit);
  if (status.bad()) wrong(file, std::string("DCMTK cannot write it: ") + status.text());
}
