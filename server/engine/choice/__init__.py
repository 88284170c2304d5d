"""What each sequence goes on with: rules on scores, sampling, beam search, transformers' in all."""
