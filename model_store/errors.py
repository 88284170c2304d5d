"""The error hierarchy of the model store.

Every message names the offending value and what to do about it; callers show it unchanged.
"""


class ModelStoreError(Exception):
    """Base of every error that the model store raises on purpose."""


class InvalidRequestError(ModelStoreError):
    """The request is malformed: a bad name, a bad reference, a bad model directory."""


class NotFoundError(InvalidRequestError):
    """The name, version or alias is not in the store."""


class UnsupportedModelError(InvalidRequestError):
    """The model's `config.json` describes an architecture that this project does not support."""


class CorruptStoreError(ModelStoreError):
    """Stored bytes do not match what was published: wrong size, wrong hash, unreadable pointer."""


class UnknownSchemaError(ModelStoreError):
    """A manifest was written by a newer program than this one."""


class StoreAccessError(ModelStoreError):
    """The disk refused the operation: no permission, no space left, a read-only file system."""
