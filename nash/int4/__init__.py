"""Four-bit quantization: calibration on rows of the task, and the rounding that uses it."""
