// Runs both kernels over random weights in a process of their own, which a sanitizer watches.
#include <cstdio>

#include "emulator.cpp"

int main() {
  constexpr int BLOCKS = 2, BATCH = IMAGES > 1 ? IMAGES + 1 : 1, SIZE = CHANNELS * HEIGHT * WIDTH;
  emulator::Random random{1};
  std::vector<Half> given(BATCH * SIZE), out(BATCH * SIZE);
  for (Half& number : given) number = narrow(random.normal());
  // Exactly as much memory as there is to read, at an address that copies may have.
  std::unique_ptr<Chunk[]> chunks(new Chunk[BLOCKS * SPLITS * WEIGHT_BYTES / 16]);
  char* weights = reinterpret_cast<char*>(chunks.get());
  for (int part = 0; part < BLOCKS * SPLITS; ++part) {
    char* at = weights + part * WEIGHT_BYTES;
    const int biases = SHARED_WEIGHT_BYTES - 2 * 4 * OWN_INNER;
    for (int i = 0; i < biases; i += 2)
      *reinterpret_cast<Half*>(at + i) = narrow(0.02f * random.normal());
    for (int i = biases; i < WEIGHT_BYTES; i += 4)
      *reinterpret_cast<float*>(at + i) = 0.1f * random.normal();
  }
  std::vector<int> iterations(BATCH * BLOCKS), leading{0, 1, 0};
  std::vector<float> residual(BATCH * BLOCKS);
  const Strides nchw{SIZE, 1, HEIGHT * WIDTH};
  const Arguments arguments{given.data(),    out.data(), iterations.data(), residual.data(),
                            weights,         leading.data(), nchw,          nchw,
                            BATCH,           BLOCKS,     1e-3f,             20};
  const int clusters = quotient(BATCH, IMAGES);
  const int stuck = launch("forward_kernel", &arguments, clusters, 1) +
                    launch("inversion_kernel", &arguments, clusters, 2);
  bool converged = true;
  for (const float last : residual) converged &= last <= 1e-3f;
  std::printf("stuck %d, converged %d\n", stuck, converged);
  return stuck || !converged;
}
