"""What a model is: its files, its shape, and the names in its layout. Needs no torch.

Read `model.py` first: a `Model` is a folder that was opened once. Its `spec` is its shape, dense or compact; its
`layout` names the keys of `config.json`, the tensors and the sublayers. A family is a row of `families.py`, a layout a
file (`t5.py`, `umt5.py`, `bart.py`). The rest of the project imports this package; it imports nothing of the rest.
"""
