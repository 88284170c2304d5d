"""What callers and the engine share: parameters, limits, defaults, results. Needs no torch."""
