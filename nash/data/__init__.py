"""Task data: from files of any supported format, through rows, to the tokenized examples that training reads."""
