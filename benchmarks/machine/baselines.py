"""What torch takes for the same network on an H200: launches, bytes and FLOP, low and high.

Not measured. Host times are what profiles of PyTorch 2 on servers show; the rest are data-sheet
rates times a share that convolutions of few channels are known to reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from codedinv.kernels.shapes import Stage

from .model import NONE, Range

# A call from Python to the return of the launch, us: an elementwise operation; a convolution with
# its bias, through cuDNN.
HOST_ELEMENTWISE = Range(3, 7)
HOST_CONVOLUTION = Range(10, 22)
# The host asks the device for a number: everything launched must have ended.
HOST_ASKS = Range(10, 25)
# One kernel within a replayed graph, of which each depends on the one before: gap and shortest run.
GRAPH_KERNEL = Range(1.3, 2.2)
GRAPH_CONVOLUTION = Range(2.5, 6.0)
# Bytes per us: tensors that stay in L2, or that do not.
BYTES_PER_US = Range(5.0e6, 3.0e6)
# Dense TFLOP/s of cuDNN convolutions of 3 to 128 channels: of 989 in bfloat16, of 67 in float32.
TFLOPS = {"bfloat16": Range(250, 60), "float32": Range(45, 20)}
ELEMENT = {"bfloat16": 2, "float32": 4}
# A Python call of one of our operators, a third of it Triton's launcher.
HOST_OURS = Range(12, 30)


@dataclass(frozen=True)
class Form:
    """How torch runs a block's branch and what is done with it.

    Attributes:
        elementwise, convolutions, asks: calls from Python for each run of a branch, and how often
            the host asks; 0 where there is no Python.
        kernels, convolution_kernels: on the device.
        passes: over hidden-layer tensors. image_passes: over tensors of x's size.
    """

    elementwise: int
    convolutions: int
    asks: int
    kernels: Range
    convolution_kernels: int
    passes: Range
    image_passes: Range


# Three convolutions, their biases, two or three ELUs, and x + F or y - F. In NCHW half precision
# cuDNN also transposes each convolution's input and output, which channels-last avoids.
EAGER = Form(4, 3, 0, Range(7, 13), 3, Range(12, 18), Range(5, 9))
GRAPH = Form(0, 0, 0, Range(7, 13), 3, Range(12, 18), Range(5, 9))
# max-autotune: pointwise operations fused with each other and at best with the convolutions.
COMPILED = Form(0, 0, 0, Range(1, 4), 3, Range(5, 8), Range(3, 5))
# `reference.invert`: each iteration also norms, compares and asks.
EAGER_INVERSE = Form(18, 3, 1, Range(21, 30), 3, Range(12, 18), Range(20, 28))


def branch_us(form: Form, stage: Stage, dtype: str, batch: int) -> Range:
    """One run of a block's branch and what goes with it, us."""
    pixels = batch * stage.height * stage.width * ELEMENT[dtype]
    hidden, image = pixels * stage.hidden, pixels * stage.channels
    moved = Range(
        (form.passes.low * hidden + form.image_passes.low * image) / BYTES_PER_US.low,
        (form.passes.high * hidden + form.image_passes.high * image) / BYTES_PER_US.high,
    )
    flop = 2e-6 * batch * stage.branch_macs
    products = Range(flop / TFLOPS[dtype].low, flop / TFLOPS[dtype].high)
    least = Range(
        form.kernels.low * GRAPH_KERNEL.low + form.convolution_kernels * GRAPH_CONVOLUTION.low,
        form.kernels.high * GRAPH_KERNEL.high + form.convolution_kernels * GRAPH_CONVOLUTION.high,
    )
    # A kernel takes its shortest run or its work, whichever is more.
    work = moved + products
    device = Range(max(least.low, work.low), max(least.high, work.high))
    host = NONE
    if form.convolutions:
        host = form.elementwise * HOST_ELEMENTWISE + form.convolutions * HOST_CONVOLUTION
        host += form.asks * HOST_ASKS
    return Range(max(device.low, host.low), max(device.high, host.high))
