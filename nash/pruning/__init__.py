"""From a dense model to a compact one. `prune` is the command's work, `walk` its stages one after the other.

Pure mathematics: `gates`. On a student: `masking`, `distillation`, `student_training`, `calibration`. On weights:
`compaction`, `repair`.
"""
