"""What every long command has: a folder to go on from, progress that a person sees, lineage, a word on full disks."""
