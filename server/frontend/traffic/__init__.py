"""Which variant of a model answers, and what others would have answered: weights, sticky callers, shadows."""
