"""Model folders as transformers loads and saves them, and the classes of compact models.

transformers finds a compact model's class once `nash` is imported. The classes derive from transformers' own; each
layout has a file with its additions: `t5`, `umt5`, `bart`.
"""
