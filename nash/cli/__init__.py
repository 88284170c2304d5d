"""The command line: one file per command, which is why there are more than twelve.

Each file reads flags, refuses what `nash.preflight` can refuse, and only then imports the code that does the work:
torch takes seconds to load, and a typing error must be reported at once.
"""
