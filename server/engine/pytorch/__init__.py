"""The backend that PyTorch computes: on CUDA, and on any CPU; there it is the reference, written to be read."""
