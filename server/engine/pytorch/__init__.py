"""The PyTorch backend: for CUDA, and for any CPU, where it is the reference and written to be read."""
