"""Many walks from one recipe, and the frontier of quality and speed that they draw."""
