"""Linear maps: one interface, one file per format. Weights are laid out when they are loaded."""
