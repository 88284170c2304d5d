"""Measure a model's quality and speed on the engine that serves it, and find the shape that has a requested speed.

Commands call `assess`. Quality: `evaluate`, `metrics`, `by_dtype`. Speed: `latency`, `workload`; and to find the shape
for a requested speed, `random_model` and `speedup`, with the models of `nash.costs`. `report` is what a run prints at
its end.
"""
