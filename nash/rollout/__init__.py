"""`nash rollout`: move a model's requests from one variant to another step by step, and back if it does not go well."""
