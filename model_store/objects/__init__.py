"""The objects of a store and what they say: versions, aliases, blobs, records. docs/store-format.md describes them."""
