"""Task data: from files of any format, by way of rows, to the tokenized examples that training takes."""
