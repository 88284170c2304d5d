"""What every long command needs: a folder to resume from, visible progress, lineage, clear errors on a full disk."""
