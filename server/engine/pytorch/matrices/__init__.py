"""Linear maps: one interface, a file a format. Weights are laid out when they are loaded."""
