"""Model folders as transformers loads and saves them, and the classes of compact models.

transformers finds a compact model's class once `nash` is imported. The classes are made from transformers' own; what a
layout adds is a file each: `t5`, `umt5`, `bart`.
"""
