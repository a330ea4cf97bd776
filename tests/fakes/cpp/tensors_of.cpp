// Runs a bundle's preprocessing: tensors_of OUT (FILE WIDTH HEIGHT CHANNELS BITS STRIDE ORIENTATION BGR)...
// Each file holds raw pixels; OUT gets the tensors one after the other.

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "preprocess.hpp"

int main(int count, char** words) {
  app::Preprocess preprocess;
  std::ofstream out(words[1], std::ios::binary);
  for (int at = 2; at + 7 < count; at += 8) {
    std::ifstream file(words[at], std::ios::binary);
    const std::string pixels{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const auto number = [&](int i) { return std::atoi(words[at + i]); };
    const app::Picture picture{pixels.data(), number(1), number(2), number(3), number(4), number(5), number(6), number(7) != 0};
    std::vector<app::Preprocess::Element> tensor(app::Preprocess::size);
    preprocess(picture, tensor.data());
    const auto bytes = static_cast<std::streamsize>(tensor.size() * sizeof(app::Preprocess::Element));
    out.write(reinterpret_cast<const char*>(tensor.data()), bytes);
  }
  const app::Picture nothing;
  try {
    preprocess(nothing, nullptr);
  } catch (const std::invalid_argument&) {
    return out.good() ? 0 : 1;
  }
  return 3;
}
