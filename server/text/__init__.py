"""Text and tokens: the tokenizer's two directions, stop strings, how much two texts agree. No torch."""
