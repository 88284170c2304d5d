"""`nash generate`: answers to the rows of a file, without a server."""
