"""Many pruning runs from one recipe, and the quality-speed frontier that they form."""
