"""How a store lies on a disk: paths, write-once blobs, pointers, records, views of hard links."""
