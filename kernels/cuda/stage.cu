// Residual blocks of one shape, forward and inverse, with all state on chip: docs/on-chip.md.
#include "forward.cuh"
#include "inversion.cuh"

#if BANDS * SPLITS > 1
#define CLUSTERED __cluster_dims__(BANDS* SPLITS, 1, 1)
#else
#define CLUSTERED
#endif

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, 1)
    forward_kernel(const __grid_constant__ Arguments arguments) {
  forward(arguments);
}

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, 1)
    inversion_kernel(const __grid_constant__ Arguments arguments) {
  invert(arguments);
}
