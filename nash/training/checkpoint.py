"""Checkpoints of a phase: written whole or not at all, and without pickles.

`checkpoint-STEP` holds the module and the optimizer as safetensors. Everything else is JSON: the step, the log, the
settings of the optimizer's groups. The state of torch's random numbers is stored as a tensor like the others.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

_MODULE, _TENSORS, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_KEPT = 2  # the newest checkpoints stay
_NAME = re.compile(r"checkpoint-([0-9]+)")
_RANDOM = "random."  # prefix of the generators' states among the optimizer's tensors


@dataclass(kw_only=True)
class PhaseState:
    """The progress of a phase."""

    step: int = 0  # updates made so far
    log: list[dict[str, float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)  # sums for the next entry of the log
    validated_step: int = 0  # of the last validation
    best_step: int | None = None  # of the best validation so far
    best: list[float] = field(
        default_factory=list
    )  # its figures, higher is better, the first in which two differ decides
    unimproved: int = 0  # validations since that one


def save_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: PhaseState) -> None:
    """Write `folder/checkpoint-STEP`, whole or not at all, and remove all but the newest ones."""
    part = folder / f"checkpoint-{state.step}.part"
    for leftover in folder.glob("checkpoint-*.part"):  # of a kill while saving
        shutil.rmtree(leftover)
    part.mkdir(parents=True)
    saved = optimizer.state_dict()
    tensors = {
        f"{number}.{name}": value.contiguous()
        for number, values in saved["state"].items()
        for name, value in values.items()
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
    save_model(module, str(part / _MODULE))
    save_file(tensors | {_RANDOM + name: value for name, value in _random_states().items()}, part / _TENSORS)
    document = asdict(state) | {"groups": groups}
    (part / _STATE).write_text(json.dumps(document), encoding="utf-8")
    target = folder / f"checkpoint-{state.step}"
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    for old in sorted(_checkpoints(folder), reverse=True)[_KEPT:]:
        shutil.rmtree(folder / f"checkpoint-{old}")
    for weights in folder.glob(_best("*")):
        if weights.name != _best(state.best_step):
            weights.unlink()


def save_best(folder: Path, module: nn.Module, state: PhaseState) -> None:
    """Keep the module's weights as those of `state.best_step`. Earlier ones go when a checkpoint names this step."""
    part = folder / ".best.part"
    save_model(module, str(part))
    part.replace(folder / _best(state.best_step))


def has_best(folder: Path, state: PhaseState) -> bool:
    """Whether the weights of `state.best_step` are there: an older checkpoint's may be gone."""
    return (folder / _best(state.best_step)).is_file()


def load_best(folder: Path, module: nn.Module, state: PhaseState) -> None:
    """Give the module the weights of `state.best_step`."""
    load_model(module, folder / _best(state.best_step))


def _best(step: int | str | None) -> str:
    return f"best-{step}.safetensors"


def load_checkpoint(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> PhaseState:
    """Restore a module and an optimizer; random numbers are left to `restore_random_states`."""
    document = _state_of(checkpoint)
    assert document is not None, f"{checkpoint} is not whole"
    load_model(module, checkpoint / _MODULE)
    tensors = load_file(checkpoint / _TENSORS)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if not name.startswith(_RANDOM):
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
    groups = [
        {**group, "params": here["params"]}
        for group, here in zip(document.pop("groups"), optimizer.state_dict()["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return PhaseState(**document)


def restore_random_states(checkpoint: Path) -> None:
    """Let torch's random numbers continue from the checkpoint."""
    tensors = load_file(checkpoint / _TENSORS)
    torch.set_rng_state(tensors[_RANDOM + "cpu"])
    if torch.cuda.is_available() and _RANDOM + "cuda" in tensors:
        torch.cuda.set_rng_state(tensors[_RANDOM + "cuda"])


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    for step in sorted(_checkpoints(folder), reverse=True):
        if _state_of(folder / f"checkpoint-{step}") is not None:
            return folder / f"checkpoint-{step}"
    return None


def _checkpoints(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*"))
    return [int(name.group(1)) for name in names if name is not None]


def _state_of(checkpoint: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def largest_folder_bytes(parameters: int) -> int:
    """The most that a phase of a model of so many parameters leaves in its run's folder.

    A checkpoint holds the weights and the optimizer's two moments, all in float32. There are the kept ones, the one
    that is being written, the best weights, and the finished model beside the one that is validated.
    """
    return 4 * parameters * (3 * (_KEPT + 1) + 3)
