// The payloads of earlier wire versions, as tests/test_codecs.py reads them, for machines that run
// no Python tests: one built for another architecture, say. Reads just enough JSON for these files.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "check.h"
#include "codec/codec.h"

namespace fedcomm {
namespace {

/// A flat object of strings without escapes.
std::map<std::string, std::string> read_strings(const std::filesystem::path& path) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> quoted;
  for (std::size_t at = text.find('"'); at != std::string::npos; at = text.find('"', at + 1)) {
    const std::size_t end = text.find('"', at + 1);
    CHECK(end != std::string::npos);
    quoted.push_back(text.substr(at + 1, end - at - 1));
    at = end;
  }
  std::map<std::string, std::string> all;
  for (std::size_t i = 0; i + 1 < quoted.size(); i += 2)
    all[quoted[i]] = quoted[i + 1];
  return all;
}

/// Of all wire versions: "wire1/int8.json".
std::vector<std::filesystem::path> payload_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& version : std::filesystem::directory_iterator(FEDCOMM_GOLDEN)) {
    if (!version.path().filename().string().starts_with("wire")) continue;
    for (const auto& entry : std::filesystem::directory_iterator(version))
      files.push_back(entry.path());
  }
  return files;
}

template <typename T>
std::vector<T> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  CHECK_EQUAL(bytes.size() % sizeof(T), 0u);
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

TEST(golden_payloads_are_read_and_written_as_they_were) {
  std::vector<std::string> missing = codec_names();
  for (const auto& file : payload_files()) {
    auto golden = read_strings(file);
    const auto codec = make_codec(golden["codec"]);
    const auto input = from_hex<float>(golden["input"]);
    const auto truth = from_hex<float>(golden["decoded"]);
    const auto payload = from_hex<std::byte>(golden["payload"]);
    CHECK(!input.empty() && truth.size() == input.size());
    std::vector<std::byte> written(codec->wire_bytes(input.size()));
    written.resize(codec->encode(input, {}, written));
    CHECK(written == payload);
    std::vector<float> decoded(input.size());
    codec->decode(payload, decoded);
    CHECK(std::memcmp(decoded.data(), truth.data(), truth.size() * sizeof(float)) == 0);
    std::erase(missing, codec->name());
  }
  CHECK(missing.empty());
}

}  // namespace fedcomm
