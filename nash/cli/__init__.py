"""The command line: one file a command, which is why there are more than twelve.

A file here reads flags, refuses what `nash.preflight` can refuse, and only then imports what does the work: torch takes
seconds to load, and a typing error is answered at once.
"""
