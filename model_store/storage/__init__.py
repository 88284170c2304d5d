"""Where the bytes of a store lie: the few operations that its protocol needs, on a local disk and on object storage."""
