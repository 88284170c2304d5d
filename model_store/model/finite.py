"""Whether weights are numbers: a NaN or an infinity in one of them spoils every answer."""

from collections.abc import Mapping
from pathlib import Path

from model_store.errors import InvalidRequestError
from model_store.model.safetensors_header import data_start, read_header

# An exponent whose bits are all set is that of an infinity or a NaN. Its type as bits, and the mask of the exponent:
_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_PIECE_BYTES = 1 << 20  # stays in the processor's cache between the read and the two passes


def check_finite(path: Path) -> None:
    """Read every weight of a safetensors file.

    Raises:
        InvalidRequestError: one is NaN or infinite; the message names its tensor.
    """
    import numpy as np  # late: it takes a tenth of a second, and most of what one does with a store needs none

    tensors = read_header(path)
    with path.open("rb") as file:
        start = data_start(file)
        piece = bytearray(_PIECE_BYTES)
        for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
            if info.dtype not in _EXPONENTS:
                continue
            bits, mask = _EXPONENTS[info.dtype]
            file.seek(start + info.start)
            left = info.size_bytes
            while left:
                count = file.readinto(memoryview(piece)[: min(left, _PIECE_BYTES)])
                if count == 0:
                    raise InvalidRequestError(f"{path.name} was cut short while it was read: copy it again")
                values = np.frombuffer(piece, dtype=bits, count=count // np.dtype(bits).itemsize)
                if bool(((values & mask) == mask).any()):
                    raise InvalidRequestError(
                        f"{path.name}: {name[:120]!r} has weights that are NaN or infinite: train or convert it again"
                    )
                left -= count
