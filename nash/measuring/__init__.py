"""How good a model is and how fast, both on the engine that serves it; and from an asked speed to a shape.

`assess` is what commands call. Quality: `evaluate`, `metrics`, `by_dtype`. Speed: `latency`, `workload`; to find the
shape that has an asked speed, `cost_model`, `random_model` and `speedup`. `report` is what a run says at its end.
"""
