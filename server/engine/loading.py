"""From a model directory and a configuration to what an engine is made of."""

import json
from pathlib import Path
from typing import Any

import torch

from model_store.spec import ModelSpec
from server.engine.backend import Backend
from server.engine.capabilities import why_not, why_not_native
from server.engine.errors import BadRequestError, LoadError
from server.engine.generation_config import GenerationDefaults, read_generation_config
from server.engine.native.backend import NativeBackend
from server.engine.sequence import EngineConfig, EngineLimits
from server.engine.static_step import Progress
from server.engine.torch_backend import TorchBackend
from server.engine.validation import check_parameters

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "int8": torch.float32,  # the weights alone, and the products with them, are int8
    "int4": torch.float32,  # the same
}


def make_backend(directory: Path, spec: ModelSpec, config: EngineConfig, progress: Progress) -> Backend:
    """Load a model's weights into the backend that its configuration asks for, or into the first that can.

    Raises:
        LoadError: the configuration cannot hold together or be had on this machine, or the weights cannot be loaded.
    """
    refusal = why_not(config)
    if refusal is not None:
        raise LoadError(refusal)
    obstacle = why_not_native(config)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise LoadError(f"device {config.device!r} is not available on this machine: use 'cpu'")
    if config.device.startswith("cuda:") and int(config.device[5:]) >= torch.cuda.device_count():
        raise LoadError(f"device {config.device!r} is not there: this machine has {torch.cuda.device_count()}, from 0")
    if config.backend != "torch" and obstacle is None:
        return NativeBackend.load(directory, spec, config)
    return TorchBackend.load(directory, spec, config, _DTYPES[config.dtype], progress)


def read_defaults(directory: Path, spec: ModelSpec, config: EngineConfig) -> GenerationDefaults:
    """Of generation_config.json, or of config.json where it is not there: older models say it all in one.

    Raises:
        LoadError: the file cannot be read, or says what this engine has not or its limits do not allow.
    """
    path = directory / "generation_config.json"
    if not path.exists():
        path = directory / "config.json"
    defaults = read_generation_config(
        read_json(path),
        path=path,
        vocab_size=spec.target_vocab_size,
        eos_id=spec.eos_id,
        decoder_start_id=spec.decoder_start_id,
        most_new_tokens=config.max_new_tokens,
    )
    try:
        check_parameters(
            defaults.parameters,
            limits=EngineLimits.of(config),
            vocab_size=spec.target_vocab_size,
            eos_ids=defaults.eos_ids,
        )
    except BadRequestError as error:
        raise LoadError(f"{path}, or how the model is loaded: {error}") from error
    return defaults


def read_json(path: Path) -> dict[str, Any]:
    """A model directory's JSON object.

    Raises:
        LoadError: the file is not there or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path} is not there: a model directory holds config.json") from None
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not JSON ({error}): copy or pull the model again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds {type(content).__name__}, not an object: copy or pull the model again")
    return content
