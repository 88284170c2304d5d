"""The shape of models, and immutable versions of them. Imports nothing else from this project.

`store` is the interface for callers, `operations/` what it does. `model/` describes a model's shape and layout,
`version/` a version's metadata, `objects/` what a store consists of, `storage/` where its bytes lie: on a local disk or
in object storage.
"""
