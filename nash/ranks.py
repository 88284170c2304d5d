"""The processes of one run, as `torchrun` or `accelerate launch` starts them: one for each GPU.

A recipe says the same with any number of processes: they share the rows of every batch, so an update is that of one
process, up to rounding. Weights, gates and multipliers are equal in all of them after every update:

- gradients are summed before they are clipped;
- the noise of gates and the choice of dropped layers are those of the first process. Dropout alone differs;
- the first process alone writes to the disk and to the terminal, and does what is not training. The others wait.

Outside of `together`, and in a run of one process, nothing is sent and nothing changes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from nash.errors import NashError

if TYPE_CHECKING:  # torch is slow to import, and most of the callers need only a number
    from torch import Tensor, nn

T = TypeVar("T")

# How long a process waits for the others: the first one may generate a teacher's answers for days.
_PATIENCE = timedelta(days=7)
_NUMBERS_AT_ONCE = 2**26  # of the gradients that are summed in one message


def count() -> int:
    """How many processes work on this run."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else 1


def number() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_number() -> int:
    """This process's number among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", number())) if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return number() == 0


@contextmanager
def together(device: str) -> Iterator[None]:
    """Within the block, the processes of the run can send to each other; `device` is this process's."""
    if count() == 1:
        yield
        return
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    yield
    state.destroy_process_group()  # not after an error: this process is about to end, and the others learn it from that
    PartialState._reset_state()


def on_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, which alone calls it; the others wait.

    Raises:
        NashError: it failed in the first process, where its own error is raised.
    """
    if not _speaking():
        return make()
    import torch.distributed as dist

    failure: Exception | None = None
    said: list[Any] = [False, None]
    if first():
        try:
            said = [True, make()]
        except Exception as error:  # noqa: BLE001  whatever it is, the others must not wait for ever
            failure = error
    with _peers_alive():
        dist.broadcast_object_list(said, src=0)
    if failure is not None:
        raise failure
    if not said[0]:
        raise NashError(_ended())
    result: T = said[1]
    return result


def share(rows: Sequence[int]) -> tuple[list[int], float]:
    """This process's rows of a batch, and the weight of their losses.

    A batch with fewer rows than there are processes is computed by all of them, and each counts for its part.
    """
    if len(rows) < count():
        return list(rows), 1 / count()
    return list(rows[number() :: count()]), 1.0


def of_first(tensors: list["Tensor"]) -> list["Tensor"]:
    """The first process's values of tensors that have the same shapes, dtype and device in every process."""
    if not _speaking() or not tensors:
        return tensors
    import torch
    import torch.distributed as dist

    flat, back = _sendable(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    with _peers_alive():
        dist.broadcast(flat, src=0)
    parts = torch.split(flat.to(back), [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def sum_of(tensor: "Tensor") -> "Tensor":
    """The sum of a tensor over the processes."""
    if not _speaking():
        return tensor
    import torch.distributed as dist

    flat, back = _sendable(tensor.detach().clone())
    with _peers_alive():
        dist.all_reduce(flat)
    return flat.to(back)


def sum_gradients(parameters: Iterable["nn.Parameter"]) -> None:
    """Replace every gradient by its sum over the processes. The same parameters have one in every process."""
    if not _speaking():
        return
    import torch

    bucket: list[Tensor] = []
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for i, gradient in enumerate(gradients):
        bucket.append(gradient)
        if i + 1 == len(gradients) or sum(each.numel() for each in bucket) >= _NUMBERS_AT_ONCE:
            total = sum_of(torch.cat([each.flatten() for each in bucket]))
            for each, part in zip(bucket, torch.split(total, [each.numel() for each in bucket]), strict=True):
                each.copy_(part.view_as(each))
            bucket = []


def _speaking() -> bool:
    if count() == 1:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


def _sendable(tensor: "Tensor") -> tuple["Tensor", Any]:
    """The tensor where the processes' backend can send it from, and the device that it came from."""
    import torch.distributed as dist

    return tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu(), tensor.device


@contextmanager
def _peers_alive() -> Iterator[None]:
    """Turn the backend's many errors about a process that is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        raise NashError(_ended()) from error


def _ended() -> str:
    return (
        "another process of this run has ended, and its own message says why; the same command continues from the last "
        "checkpoint"
    )
