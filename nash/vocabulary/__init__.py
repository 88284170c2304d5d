"""A vocabulary trimmed to a task, and the `tokenizer.json` that goes with it."""
