"""Four bits a weight: calibration on rows of the task, and the rounding that it steers."""
