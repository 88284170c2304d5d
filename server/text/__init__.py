"""Text and tokens: encoding, decoding, stop strings, and how much two texts agree. No torch."""
