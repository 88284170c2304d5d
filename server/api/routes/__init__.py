"""One file per group of routes, and the documents that they return."""
