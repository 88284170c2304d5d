"""What CUDA does when it records, on any device: operations with their arguments as they were, run again later."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that runs within it; what the host does between them is lost, as in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Run the operations on the same memory; their results go where they went."""
        for func, args, kwargs, before in self._calls:
            after = func(*args, **kwargs)
            for target, result in zip(_tensors(before), _tensors(after), strict=True):
                if target.layout == torch.strided and target.data_ptr() != result.data_ptr():
                    target.copy_(result)


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [each for each in result if isinstance(each, Tensor)] if isinstance(result, tuple | list) else []
