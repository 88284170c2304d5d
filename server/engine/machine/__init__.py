"""What the machine has: processors and their instruction sets, caches, memory, CUDA devices."""
