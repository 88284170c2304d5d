"""What is cut from a model, and the cut itself.

Trained: `gates` (their mathematics) and `masking` (gates on a model). Computed from data: `calibration`; for a
requested speed, `widths` measures what every cut costs in quality, with `elimination` to make up for what is cut, and
`search` chooses the cuts by `knapsack`. The cut: `compaction`, then `repair`.
"""
