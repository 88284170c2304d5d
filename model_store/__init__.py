"""The shape of models, and immutable versions of them on a disk. Imports nothing else of this project.

`store` is what others call: `publish`, `verify` and `find` are its verbs. `model/` is a model's shape and layout,
`version/` what a version says of itself, `disk/` how both lie in files.
"""
