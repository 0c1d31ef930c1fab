// All blocks of a stage in turn: y = x + F(x).
#pragma once
#include "arguments.cuh"
#include "sums.cuh"

// How many images this cluster has.
__device__ inline int images_here(const Arguments& arguments) {
  const int left = arguments.batch - cluster() * IMAGES;
  return left < IMAGES ? left : IMAGES;
}

// state [IMAGES, ROWS, WIDTH, OWN] <- what the launch was given.
__device__ inline void load_images(const Arguments& arguments, float* state) {
  each_place_of(images_here(arguments), [&](const Place& place) {
    const Strides& strides = arguments.given_strides;
    const Half* at = arguments.given + global_place(strides, place);
    State value;
    for (int v = 0; v < VECTOR; ++v) value.at[v] = widen(at[v * strides.channel]);
    state_at(state, place) = value;
  });
}

__device__ inline void store_images(const Arguments& arguments, float* state) {
  each_place_of(images_here(arguments), [&](const Place& place) {
    const Strides& strides = arguments.out_strides;
    Half* at = arguments.out + global_place(strides, place);
    const State value = state_at(state, place);
    for (int v = 0; v < VECTOR; ++v)
      at[v * strides.channel] = static_cast<Half>(pack(value.at[v], 0.0f));
  });
}

__device__ inline void forward(const Arguments& arguments) {
  const Memory memory{shared_memory()};
  const int count = images_here(arguments), blocks = arguments.blocks;
  fetch_weights(arguments.weights, 0, memory);
  clear_activations(memory);
  load_images(arguments, memory.x());
  meet_cluster();  // Nobody writes to activations that are yet to be cleared.
  each_place_of(count, [&](const Place& place) {
    publish(memory, 0, place, state_at(memory.x(), place), arguments.leading[0]);
  });
  wait_for_copies();
  meet_cluster();
  for (int block = 0; block < blocks; ++block) {
    branch_products(memory, block);
    meet_block();
    if (block + 1 < blocks) fetch_weights(arguments.weights, block + 1, memory);
    const float* bias = last_bias(arguments.weights, block);
    const bool begins_with_elu = arguments.leading[block + 1];
    each_place_of(count, [&](const Place& place) {
      const State branch = branch_at(memory, bias, place);
      State& x = state_at(memory.x(), place);
      for (int v = 0; v < VECTOR; ++v) x.at[v] += branch.at[v];
      publish(memory, block + 1, place, x, begins_with_elu);
    });
    wait_for_copies();
    meet_cluster();
  }
  store_images(arguments, memory.x());
}
