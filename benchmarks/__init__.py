"""Side-by-side measurements, one file each, run as `python -m benchmarks.NAME`; so there are more than twelve.

results/ holds what they measured, with date and machine.
"""
