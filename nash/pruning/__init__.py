"""From a dense model to a compact one. `prune` does the command's work, `walk` runs its stages in order.

Pure mathematics: `gates`. On a student: `student`, `masking`, `distillation`, `objective`, `calibration`. On weights:
`compaction`, `repair`.
"""
