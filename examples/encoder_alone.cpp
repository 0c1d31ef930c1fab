// The encoder in a C++ front end: four queries in, their parity query out, by ONNX Runtime alone.
//
//   c++ -std=c++17 encoder_alone.cpp -I$ONNXRUNTIME/include -L$ONNXRUNTIME/lib -lonnxruntime
//   ./a.out BUNDLE/encoder.onnx K C H W < queries.f32 > parity.f32
//
// Reads K queries of C x H x W float32 from stdin and writes the parity queries to stdout. To decode,
// csrc/decoder.hpp needs no Python either.

#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: %s encoder.onnx K C H W < queries.f32 > parity.f32\n", argv[0]);
    return 2;
  }
  std::vector<int64_t> shape{1};
  size_t count = 1;
  for (int i = 2; i < argc; ++i) {
    shape.push_back(std::atoll(argv[i]));
    count *= static_cast<size_t>(shape.back());
  }
  std::vector<float> queries(count);
  if (std::fread(queries.data(), sizeof(float), count, stdin) != count) {
    std::fprintf(stderr, "expected %zu numbers on stdin\n", count);
    return 2;
  }

  OrtEnv* environment = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "codedinv", &environment));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 1));
  check(api->CreateSession(environment, argv[1], options, &session));

  OrtMemoryInfo* memory = nullptr;
  OrtValue* input = nullptr;
  OrtValue* output = nullptr;
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(api->CreateTensorWithDataAsOrtValue(memory, queries.data(), count * sizeof(float),
                                            shape.data(), shape.size(),
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
  const char* const input_names[] = {"queries"};
  const char* const output_names[] = {"parity_queries"};
  const OrtValue* const inputs[] = {input};
  check(api->Run(session, nullptr, input_names, inputs, 1, output_names, 1, &output));

  OrtTensorTypeAndShapeInfo* info = nullptr;
  size_t numbers = 0;
  float* parities = nullptr;
  check(api->GetTensorTypeAndShape(output, &info));
  check(api->GetTensorShapeElementCount(info, &numbers));
  check(api->GetTensorMutableData(output, reinterpret_cast<void**>(&parities)));
  std::fwrite(parities, sizeof(float), numbers, stdout);

  api->ReleaseTensorTypeAndShapeInfo(info);
  api->ReleaseValue(output);
  api->ReleaseValue(input);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  api->ReleaseEnv(environment);
  return 0;
}
