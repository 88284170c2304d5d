"""What callers share with the engine: parameters, limits, defaults, results. Needs no torch."""
