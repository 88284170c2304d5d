"""How a store is laid out on disk: paths, write-once blobs, pointers, records, views of hard links."""
