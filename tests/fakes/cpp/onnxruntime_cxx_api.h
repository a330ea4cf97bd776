// A small stand-in for ONNX Runtime's C++ header, written against its public, stable C table of functions:
// what is compiled with it links and runs with the real libonnxruntime of the Python package. It has what
// the bundles' code uses, with the names and types of the public API, and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_VERBOSE, ORT_LOGGING_LEVEL_INFO, ORT_LOGGING_LEVEL_WARNING };
enum OrtAllocatorType { OrtInvalidAllocator = -1, OrtDeviceAllocator = 0, OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64
};
struct OrtApiBase {
  void* const*(*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};
const OrtApiBase* OrtGetApiBase();
}

namespace Ort {

// The functions' places in the table, which no release may move.
enum Place {
  kGetErrorMessage = 2, kCreateEnv = 3, kCreateSession = 7, kRun = 9, kCreateSessionOptions = 10,
  kSetIntraOpNumThreads = 24, kSetInterOpNumThreads = 25, kCreateTensor = 49, kGetTensorMutableData = 51,
  kGetElementCount = 64, kGetTensorTypeAndShape = 65, kCreateCpuMemoryInfo = 69, kReleaseEnv = 92,
  kReleaseStatus = 93, kReleaseMemoryInfo = 94, kReleaseSession = 95, kReleaseValue = 96,
  kReleaseTypeAndShape = 99, kReleaseSessionOptions = 100, kAddSessionConfigEntry = 130
};

template <class Function>
Function* function(Place place) {
  return reinterpret_cast<Function*>(OrtGetApiBase()->GetApi(12)[place]);
}

template <class... Arguments>
void call(Place place, Arguments... arguments) {
  void* status = function<void*(Arguments...)>(place)(arguments...);
  if (status == nullptr) return;
  const std::string message = function<const char*(void*)>(kGetErrorMessage)(status);
  function<void(void*)>(kReleaseStatus)(status);
  throw std::runtime_error(message);
}

// What the library made, released once; it can be moved and not copied.
template <Place release>
class Owned {
 public:
  Owned() = default;
  Owned(Owned&& other) noexcept : p_(other.p_) { other.p_ = nullptr; }
  Owned& operator=(Owned&& other) noexcept {
    void* p = other.p_;
    other.p_ = p_;
    p_ = p;
    return *this;
  }
  ~Owned() {
    if (p_ != nullptr) function<void(void*)>(release)(p_);
  }
  void* get() const { return p_; }

 protected:
  void* p_ = nullptr;
};

struct Env : Owned<kReleaseEnv> {
  Env(OrtLoggingLevel level, const char* name) { call<OrtLoggingLevel, const char*, void**>(kCreateEnv, level, name, &p_); }
};

struct MemoryInfo : Owned<kReleaseMemoryInfo> {
  static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType memory) {
    MemoryInfo made;
    call<OrtAllocatorType, OrtMemType, void**>(kCreateCpuMemoryInfo, type, memory, &made.p_);
    return made;
  }
};

struct SessionOptions : Owned<kReleaseSessionOptions> {
  SessionOptions() { call<void**>(kCreateSessionOptions, &p_); }
  SessionOptions& SetIntraOpNumThreads(int n) { return call<void*, int>(kSetIntraOpNumThreads, p_, n), *this; }
  SessionOptions& SetInterOpNumThreads(int n) { return call<void*, int>(kSetInterOpNumThreads, p_, n), *this; }
  SessionOptions& AddConfigEntry(const char* key, const char* value) {
    return call<void*, const char*, const char*>(kAddSessionConfigEntry, p_, key, value), *this;
  }
};

struct RunOptions {
  explicit RunOptions(std::nullptr_t) {}
};

struct TensorTypeAndShapeInfo : Owned<kReleaseTypeAndShape> {
  explicit TensorTypeAndShapeInfo(void* value) { call<void*, void**>(kGetTensorTypeAndShape, value, &p_); }
  std::size_t GetElementCount() const {
    std::size_t count = 0;
    call<void*, std::size_t*>(kGetElementCount, p_, &count);
    return count;
  }
};

struct Value : Owned<kReleaseValue> {
  Value() = default;
  explicit Value(void* made) { p_ = made; }
  static Value CreateTensor(const MemoryInfo& info, void* data, std::size_t bytes, const std::int64_t* shape,
                            std::size_t rank, ONNXTensorElementDataType type) {
    Value made;
    call<void*, void*, std::size_t, const std::int64_t*, std::size_t, ONNXTensorElementDataType, void**>(
        kCreateTensor, info.get(), data, bytes, shape, rank, type, &made.p_);
    return made;
  }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const { return TensorTypeAndShapeInfo(p_); }
  template <class T>
  const T* GetTensorData() const {
    void* data = nullptr;
    call<void*, void**>(kGetTensorMutableData, p_, &data);
    return static_cast<const T*>(data);
  }
};

struct Session : Owned<kReleaseSession> {
  Session(const Env& env, const char* path, const SessionOptions& options) {
    call<void*, const char*, void*, void**>(kCreateSession, env.get(), path, options.get(), &p_);
  }
  std::vector<Value> Run(const RunOptions&, const char* const* input_names, const Value* inputs,
                         std::size_t input_count, const char* const* output_names, std::size_t output_count) {
    std::vector<void*> in, out(output_count, nullptr);
    for (std::size_t i = 0; i < input_count; ++i) in.push_back(inputs[i].get());
    call<void*, void*, const char* const*, void* const*, std::size_t, const char* const*, std::size_t, void**>(
        kRun, p_, nullptr, input_names, in.data(), input_count, output_names, output_count, out.data());
    std::vector<Value> values;
    for (void* value : out) values.emplace_back(value);
    return values;
  }
};

}  // namespace Ort
