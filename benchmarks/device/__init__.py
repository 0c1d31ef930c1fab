"""Measurements of the kernels on a GPU; `benchmarks/kernels.py` is the command line."""
