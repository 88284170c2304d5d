"""A file a group of routes, and the documents that they answer with."""
