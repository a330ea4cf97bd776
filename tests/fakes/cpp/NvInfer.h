// A whole stand-in for the part of TensorRT's C++ API that the bundles' code uses, with its public names and
// types. Its "engine" adds up: the file names an input's size in bytes, and every output float is the sum of
// the input's floats, so that addresses, copies and shapes must be right for the numbers to be.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>

namespace nvinfer1 {

struct Dims {
  static constexpr std::int32_t MAX_DIMS = 8;
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

class IExecutionContext {
 public:
  bool setInputShape(const char* name, const Dims& shape) {
    std::int64_t product = 1;
    for (std::int32_t i = 0; i < shape.nbDims; ++i) product *= shape.d[i];
    input_ = name;
    count_ = product;
    return product > 0;
  }
  bool setTensorAddress(const char* name, void* address) { return at_[name] = address, address != nullptr; }
  bool enqueueV3(cudaStream_t stream) {
    float sum = 0.0f;
    const auto* values = static_cast<const float*>(at_.at(input_));
    for (std::int64_t i = 0; i < count_; ++i) sum += values[i];
    for (const auto& [name, address] : at_)
      if (name != input_)
        for (int i = 0; i < 5; ++i) static_cast<float*>(address)[i] = sum + static_cast<float>(i);
    return stream != nullptr;
  }

 private:
  std::string input_;
  std::int64_t count_ = 0;
  std::map<std::string, void*> at_;
};

class ICudaEngine {
 public:
  IExecutionContext* createExecutionContext() { return new IExecutionContext; }
};

class IRuntime {
 public:
  ICudaEngine* deserializeCudaEngine(const void* data, std::size_t size) {
    return size >= 6 && std::memcmp(data, "engine", 6) == 0 ? new ICudaEngine : nullptr;
  }
};

inline IRuntime* createInferRuntime(ILogger& logger) {
  logger.log(ILogger::Severity::kINFO, "a stand-in");
  return new IRuntime;
}

}  // namespace nvinfer1
