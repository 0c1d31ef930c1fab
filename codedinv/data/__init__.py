"""Data: queries with their labels, from arrays, torch data sets, .npz files, folders of images and
IDX files; Fashion-MNIST, MNIST and the bundled test images."""

from codedinv.data.examples import Examples, as_examples
from codedinv.data.files import load_data, load_split
from codedinv.data.idx import read_idx, write_idx
from codedinv.data.image_sets import (
    FASHION_MNIST_CLASSES,
    Images,
    Labels,
    Split,
    is_fashion_mnist,
    load_fashion_mnist,
    load_image_set,
    load_mnist,
    load_test_images,
    to_queries,
)

__all__ = [
    "FASHION_MNIST_CLASSES",
    "Examples",
    "Images",
    "Labels",
    "Split",
    "as_examples",
    "is_fashion_mnist",
    "load_data",
    "load_fashion_mnist",
    "load_image_set",
    "load_mnist",
    "load_split",
    "load_test_images",
    "read_idx",
    "to_queries",
    "write_idx",
]
