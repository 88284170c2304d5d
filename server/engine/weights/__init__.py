"""From a model folder to neutral weights, which know no family; both backends take them from here."""
