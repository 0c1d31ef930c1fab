// What a launch passes: `Arguments` of kernels/on_chip_launch.py, field by field.
#pragma once
#include "device.cuh"

// Elements from one image, pixel or channel to the next; all pixels of an image have one stride.
struct Strides {
  long long image, pixel, channel;
};

struct Arguments {
  const Half* given;     // [batch, CHANNELS, HEIGHT, WIDTH]
  Half* out;             // likewise
  int* iterations;       // [batch, blocks]; of an inversion only, as all that follows with a star
  float* residual;       // [batch, blocks] *
  const char* weights;   // [blocks, SPLITS, WEIGHT_BYTES]
  const int* leading;    // [blocks + 1], 1 where a block begins with an ELU; the last is 0
  Strides given_strides, out_strides;
  int batch, blocks;
  float tolerance;       // relative step at which an image is done with a block *
  int max_iter;          // iterations that an image may spend on a block *
};
