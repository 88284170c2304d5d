"""What the machine has: processors and their instructions, caches, memory, CUDA devices."""
