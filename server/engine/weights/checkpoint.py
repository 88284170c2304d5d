"""A model's weights that fit its config, read tensor by tensor, from one safetensors file or from several."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_store.errors import InvalidRequestError
from model_store.model.model import Model
from server.engine.errors import LoadError

_DTYPES = ("F64", "F32", "F16", "BF16")  # integers and 8-bit floats mean nothing without their scales


class Tensors(Protocol):
    """A model's tensors by name, in the requested dtype and on the requested device."""

    def __contains__(self, name: str) -> bool: ...

    def place(self, tensor: Tensor) -> Tensor:
        """A computed tensor, in the same dtype and on the same device as those that are read."""

    def read(self, name: str) -> Tensor:
        """One tensor, whose memory the caller owns; the same name gives the same numbers."""


class Checkpoint:
    """The tensors of open files; implements `Tensors`."""

    def __init__(self, files: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device) -> None:
        """`files` has the open file of each tensor; callers use `open_checkpoint`."""
        self._files = files
        self._dtype = dtype
        self._device = device

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def place(self, tensor: Tensor) -> Tensor:
        """A computed tensor, in the same dtype and on the same device as those that are read."""
        return tensor.to(device=self._device, dtype=self._dtype)

    def read(self, name: str) -> Tensor:
        """A copy of one tensor: the file's tensors are views into it, and the file may change."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)


@contextmanager
def open_checkpoint(model: Model, *, dtype: torch.dtype, device: torch.device) -> Iterator[Checkpoint]:
    """A model's weights, checked against its shape; closed with the context.

    Raises:
        LoadError: a file is missing or not a safetensors file, or its tensors do not match the shape.
    """
    path = model.weights
    try:
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for path in model.weight_files if model.weights.is_file() else (model.weights,):
                file = stack.enter_context(safe_open(path, framework="pt"))
                files |= dict.fromkeys(file.keys(), file)
            model.check_weights()
            _check_dtypes(model.weights, {name: file.get_slice(name).get_dtype() for name, file in files.items()})
            yield Checkpoint(files, dtype=dtype, device=device)
    except FileNotFoundError:
        raise LoadError(f"{path} is not there: a model directory holds config.json and {path.name}") from None
    except InvalidRequestError as error:
        raise LoadError(str(error)) from error
    except SafetensorError as error:
        raise LoadError(f"{path} is not a safetensors file ({error}): copy or pull the model again") from error


def _check_dtypes(path: Path, found: dict[str, str]) -> None:
    for name, dtype in found.items():
        if dtype not in _DTYPES:
            *others, last = _DTYPES
            raise LoadError(
                f"{path}: {name!r} is {dtype}, not {', '.join(others)} or {last}: save the model without quantization"
            )
