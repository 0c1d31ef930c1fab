// x with blocks(x) = y, block by block from the last, by x <- y - F(x) from x = y, each image until
// it has converged and frozen from then on. As `invert_kernel` in kernels/inversion.py.
#pragma once
#include "forward.cuh"
#include "solver.cuh"

// Tells an image's size, in a unit that is this warp's own, and publishes y as the first x.
__device__ inline void begin_image(const Memory& memory, int turn, int image, bool leading) {
  float largest = 0;
  each_place(image, [&](const Place& place) {
    const State value = state_at(memory.x(), place);
    state_at(memory.y(), place) = value;
    for (int v = 0; v < VECTOR; ++v) largest = fmaxf(largest, fabsf(value.at[v]));
    publish(memory, turn, place, value, leading);
  });
  const float unit = fminf(fmaxf(warp_max(largest), LEAST_UNIT), LARGEST_UNIT), per = 1.0f / unit;
  float sum = 0;
  each_place(image, [&](const Place& place) {
    const State value = state_at(memory.y(), place);
    for (int v = 0; v < VECTOR; ++v) sum += value.at[v] * per * (value.at[v] * per);
  });
  tell(memory, turn, image, warp_sum(sum), unit);
}

// One iteration of an image, unless it is frozen; publishes x and tells the step's size.
__device__ inline void iterate_image(const Memory& memory, const float* bias, int turn, int image,
                                     bool leading, const Verdict& verdict) {
  const float per = from_lane(verdict.per, image);
  const bool frozen = lanes_where(verdict.done) >> image & 1;
  float step2 = 0, norm2 = 0;
  each_place(image, [&](const Place& place) {
    State& x = state_at(memory.x(), place);
    if (!frozen) {
      const State y = state_at(memory.y(), place), branch = branch_at(memory, bias, place);
      for (int v = 0; v < VECTOR; ++v) {
        const float image_of_x = y.at[v] - branch.at[v];
        const float step = (image_of_x - x.at[v]) * per, norm = image_of_x * per;
        step2 += step * step;
        norm2 += norm * norm;
        x.at[v] = image_of_x;
      }
    }
    publish(memory, turn, place, x, leading);
  });
  tell(memory, turn, image, warp_sum(step2), warp_sum(norm2));
}

__device__ inline void store_verdicts(const Arguments& arguments, int block, int count,
                                      const Verdict& verdict) {
  if (cluster_rank() != 0 || warp() != 0 || lane() >= count) return;
  const long long image = cluster() * IMAGES + lane(), at = image * arguments.blocks + block;
  arguments.iterations[at] = verdict.steps;
  arguments.residual[at] = verdict.last;
}

__device__ inline void invert(const Arguments& arguments) {
  const Memory memory{shared_memory()};
  const int count = images_here(arguments);
  clear_activations(memory);
  load_images(arguments, memory.x());
  meet_cluster();  // Nobody writes to activations that are yet to be cleared.
  bool failed = lane() >= count;
  int turn = 0;  // which half of activations and sums was written last
  for (int block = arguments.blocks - 1; block >= 0; --block) {
    const bool leading = arguments.leading[block];
    const float* bias = last_bias(arguments.weights, block);
    fetch_weights(arguments.weights, block, memory);
    ++turn;
    each_image(count, [&](int image) { begin_image(memory, turn, image, leading); });
    wait_for_copies();
    meet_cluster();
    Verdict verdict{0, 0, 0, 0, failed};
    set_goals(memory, turn, count, verdict);
    for (int iteration = 1; iteration <= arguments.max_iter; ++iteration) {
      if (!lanes_where(!verdict.done)) break;
      branch_products(memory, turn);
      meet_block();
      ++turn;
      each_image(count, [&](int image) {
        iterate_image(memory, bias, turn, image, leading, verdict);
      });
      meet_cluster();
      judge(memory, turn, count, iteration, arguments.tolerance, verdict);
    }
    store_verdicts(arguments, block, count, verdict);
    // An image that failed here is not worth iterating on in the blocks before.
    failed = failed || !verdict.done;
  }
  store_images(arguments, memory.x());
}
