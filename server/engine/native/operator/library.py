"""The compiled operator and its structures, as in stack.cpp. If it is missing, PyTorch does the work."""

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from server.engine.errors import LoadError
from server.engine.machine.topology import placement
from server.engine.native.operator.set_choice import SetChoice, chosen_set, library_path
from server.engine.native.operator.sets import BY_NAME

FLOAT32, BFLOAT16, INT8, INT4 = 0, 1, 2, 3
ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_new": 2, "silu": 3}
TILE = 32  # outputs of a matrix that are packed together
QUERIES = 4  # queries that a thread attends with at once, each with its own scores
PRIVATE_ROWS = 4  # rows that each thread may convert for itself


class NativeMatrix(Structure):
    _fields_ = (
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("bias", c_void_p),
    )


class NativeNorm(Structure):
    _fields_ = (("gain", c_void_p), ("shift", c_void_p))


class NativeAttention(Structure):
    _fields_ = (
        ("heads", c_int32),
        ("reserved", c_int32),
        ("queries", NativeMatrix),
        ("keys_values", NativeMatrix),
        ("out", NativeMatrix),
        ("after", NativeNorm),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("slot_stride", c_int64),
        ("head_stride", c_int64),
        ("bias", c_void_p),
        ("reach", c_int64),
    )


class NativeFeedForward(Structure):
    _fields_ = (("gate", NativeMatrix), ("into", NativeMatrix), ("out", NativeMatrix), ("after", NativeNorm))


class Layer(Structure):
    _fields_ = (("self", NativeAttention), ("cross", NativeAttention), ("ffn", NativeFeedForward))


class Stack(Structure):
    _fields_ = (
        ("layers", c_int32),
        ("width", c_int32),
        ("head_dim", c_int32),
        ("activation", c_int32),
        ("layer_norm", c_int32),
        ("norm_first", c_int32),
        ("causal", c_int32),
        ("half", c_int32),
        ("eps", c_float),
        ("embedding_scale", c_float),
        ("layer", POINTER(Layer)),
        ("embedding", c_void_p),
        ("positions", c_void_p),
        ("unplaced_token", c_int64),
        ("embedding_norm", NativeNorm),
        ("output", NativeMatrix),
    )


class Rows(Structure):
    _fields_ = (
        ("rows", c_int32),
        ("wanted", c_int32),
        ("tokens", POINTER(c_int64)),
        ("positions", POINTER(c_int32)),
        ("slots", POINTER(c_int32)),
        ("lengths", POINTER(c_int32)),
        ("memory_slots", POINTER(c_int32)),
        ("wanted_rows", POINTER(c_int32)),
    )


class Workspace(Structure):
    _fields_ = (
        ("hidden", c_void_p),
        ("queries", c_void_p),
        ("context", c_void_p),
        ("units", c_void_p),
        ("inputs", c_void_p),
        ("scales", c_void_p),
        ("scores", c_void_p),
        ("private_inputs", c_void_p),
        ("input_bytes", c_int32),
        ("score_count", c_int32),
    )


RowSeconds = c_double * 4


class NativeProgress(Structure):
    _fields_ = (
        ("part", c_int32),
        ("layer", c_int32),
        ("row", c_int32),
        ("block", c_int32),
        ("row_seconds", RowSeconds),
    )

    @property
    def place(self) -> tuple[int, int, int]:
        """The next part, layer and row."""
        return self.part, self.layer, self.row


class Ahead(Structure):
    _fields_ = (
        ("steps", c_int32),
        ("ends", c_int32),
        ("end_tokens", POINTER(c_int64)),
        ("seconds", c_double),
        ("tokens", POINTER(c_int64)),
        ("max_logits", POINTER(c_float)),
    )


# As in abi.h, in the same order.
STRUCTURES: tuple[type[Structure], ...] = (
    NativeMatrix,
    NativeNorm,
    NativeAttention,
    NativeFeedForward,
    Layer,
    Stack,
    Rows,
    Workspace,
    NativeProgress,
    Ahead,
)


class Library:
    """The operator's functions."""

    def __init__(self, path: Path) -> None:
        """Open a built library.

        Raises:
            LoadError: its structures differ from those above.
        """
        library = ctypes.CDLL(str(path))
        _check_structures(path, library)
        self.pool_create = library.nash_pool_create
        self.pool_create.argtypes = (c_int32, POINTER(c_int32), c_int32, POINTER(c_int32), POINTER(c_int32))
        self.pool_create.restype = c_void_p
        self.pool_destroy = library.nash_pool_destroy
        self.pool_destroy.argtypes, self.pool_destroy.restype = (c_void_p,), None
        self.pool_hold = library.nash_pool_hold
        self.pool_hold.argtypes, self.pool_hold.restype = (c_void_p, c_int32), None
        self.pool_active = library.nash_pool_active
        self.pool_active.argtypes, self.pool_active.restype = (c_void_p,), c_int32
        self.packed_bytes = library.nash_packed_bytes
        self.packed_bytes.argtypes, self.packed_bytes.restype = (c_int32, c_int32, c_int32), c_int64
        self.pack = library.nash_pack
        self.pack.argtypes = (c_void_p, c_int32, c_int32, c_int32, c_void_p, c_void_p, c_void_p)
        self.pack.restype = None
        passed = (POINTER(Rows), POINTER(Workspace), c_void_p)
        self.encode = library.nash_encode
        self.encode.argtypes = (POINTER(Stack), POINTER(Stack), *passed, POINTER(NativeProgress), c_double)
        self.encode.restype = c_int32
        self.decode = library.nash_decode
        self.decode.argtypes, self.decode.restype = (POINTER(Stack), *passed, c_void_p), None
        self.decode_ahead = library.nash_decode_ahead
        self.decode_ahead.argtypes = (POINTER(Stack), *passed, c_void_p, POINTER(Ahead))
        self.decode_ahead.restype = c_int32


def _check_structures(path: Path, library: ctypes.CDLL) -> None:
    """Check the structures' sizes: mismatched ones would be written and read at wrong places, with any result.

    Raises:
        LoadError: one has a different size than here.
    """
    sizes = (c_int32 * len(STRUCTURES))()
    if hasattr(library, "nash_sizes"):
        library.nash_sizes.argtypes, library.nash_sizes.restype = (POINTER(c_int32),), None
        library.nash_sizes(sizes)
    for structure, size in zip(STRUCTURES, sizes, strict=True):
        if ctypes.sizeof(structure) != size:
            raise LoadError(
                f"{path} was built from different sources ({structure.__name__} has {size} bytes there, "
                f"{ctypes.sizeof(structure)} here): install the project again"
            )


def create_pool(library: Library, threads: int) -> int:
    """A pool of `threads` threads, placed if that helps; `pool_destroy` ends it.

    Raises:
        LoadError: the system does not allow the process that many threads.
    """
    place = placement(threads)
    pool: int | None
    if place is None:
        pool = library.pool_create(threads, None, 0, None, None)
    else:
        count = len(place.cpus)
        pool = library.pool_create(
            threads,
            (c_int32 * threads)(*place.domains),
            count,
            (c_int32 * count)(*place.cpus),
            (c_int32 * count)(*place.cpu_domains),
        )
    if pool is None:
        raise LoadError(
            f"{threads} threads could not be started: lower threads, or raise the process limit (ulimit -u)"
        )
    return pool


@cache
def _opened(name: str) -> Library:
    return Library(library_path(BY_NAME[name]))


def operator_set() -> SetChoice:
    """The instruction set that the operator runs on; it has no name if PyTorch does the work.

    Raises:
        LoadError: NASH_CPU_ISA asks for an instruction set that is not available here.
    """
    try:
        return chosen_set()
    except ValueError as error:
        raise LoadError(str(error)) from None


def library() -> Library | None:
    """The operator for this processor; None if there is none: it was not built, or the processor is too old.

    Raises:
        LoadError: NASH_CPU_ISA asks for an instruction set that is not available here.
    """
    choice = operator_set()
    return None if choice.name is None else _opened(choice.name)
