"""How each sequence continues: rules on scores, sampling, beam search, all following transformers."""
