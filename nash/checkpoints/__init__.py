"""Checkpoints as others publish them, made into folders that the rest of the project reads.

Read `opening.py` first: `open_model` finds a model by path, REF or `hub:` name. A folder whose tokenizer has no
`tokenizer.json` gets one (`conversion.py`), which is compared with the original class on texts (`proof.py`).
"""
