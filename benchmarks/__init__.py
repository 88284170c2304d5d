"""Side-by-side measurements. One file each, run as `python -m benchmarks.NAME`, so there are more than twelve.

results/ keeps what they measured, with date and machine.
"""
