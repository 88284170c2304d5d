"""Sources that were encoded before, so that a request for the same text need not encode it again.

What is kept is what the decoder reads of a source: the keys and values of its cross-attention. They depend on the
model and the source's tokens alone, and an engine has one model.
"""

from collections import OrderedDict

from server.engine.backend import EncodedSource

_BASE_BYTES = 1_000  # of an entry: its key, its tensors' objects, the dictionary
_TOKEN_BYTES = 40  # of a token in its key


class SourceCache:
    """Encoded sources by their tokens, the least recently used ones dropped first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[int, ...], tuple[EncodedSource, int]] = OrderedDict()
        self.taken_bytes = 0

    def get(self, source_ids: list[int]) -> EncodedSource | None:
        """The source as it was encoded before; None if it is not kept."""
        key = tuple(source_ids)
        if (found := self._kept.get(key)) is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, source_ids: list[int], encoded: EncodedSource) -> None:
        """Keep a source, if it is not larger than all that may be kept."""
        key = tuple(source_ids)
        size = _BASE_BYTES + _TOKEN_BYTES * len(key) + sum(tensor.nbytes for tensor in encoded)
        if size > self._most_bytes or key in self._kept:
            return
        self._kept[key] = encoded, size
        self.taken_bytes += size
        while self.taken_bytes > self._most_bytes:
            _, (_, dropped) = self._kept.popitem(last=False)
            self.taken_bytes -= dropped
