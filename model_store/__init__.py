"""The shape of models, and immutable versions of them on disk. Imports nothing else from this project.

`store` is the interface for callers; `publish`, `verify` and `find` are its operations. `model/` describes a model's
shape and layout, `version/` a version's metadata, `disk/` how both are stored in files.
"""
