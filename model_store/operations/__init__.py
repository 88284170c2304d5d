"""What one does with a store: publish, check out, verify, remove, collect, copy to another store."""
