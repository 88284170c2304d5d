"""What a model's parts cost in time, fitted to measured times: pure models, which measure nothing themselves."""
