"""What to say when an update does not fit into memory: the largest batch that does, found by trying."""

from collections.abc import Callable

import torch

from nash.errors import NashError


def too_large(
    device: torch.device, batch_size: int, accumulation: int, fits: Callable[[int], bool] | None
) -> NashError:
    """The error for an update that does not fit; it names a batch that does and takes the same steps.

    `fits` tries an update of so many rows at once; None if nothing can be tried, and then half the rows are named.
    """
    smaller = [rows for rows in range(batch_size // 2, 0, -1) if batch_size % rows == 0]
    rows = next((rows for rows in smaller if fits is None or fits(rows)), None)
    memory = f"the {_gigabytes(device)} of {device}"
    if rows is None:
        return NashError(
            f"not even one row at a time fits into {memory}: set gradient_checkpointing = true or optimizer = "
            '"adafactor", or lower data.max_source_tokens'
        )
    maybe = "" if fits is not None else ", if it fits,"
    return NashError(
        f"batch_size {batch_size} needs more than {memory}: batch_size {rows} with gradient_accumulation "
        f"{accumulation * batch_size // rows}{maybe} takes the same steps, and gradient_checkpointing = true needs less"
    )


def _gigabytes(device: torch.device) -> str:
    if device.type != "cuda":
        return "memory"
    return f"{torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
