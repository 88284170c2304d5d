"""How a server behaves under clients that do wrong, workers that die, models that change, and many requests."""
