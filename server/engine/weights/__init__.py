"""From a model folder to neutral weights, independent of the model's family; both backends take them from here."""
