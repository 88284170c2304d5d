"""From a model and a configuration to the parts of an engine."""

import torch

from model_store.errors import InvalidRequestError
from model_store.model.model import Model
from server.engine.backend import Backend, Progress
from server.engine.capabilities import why_not, why_not_native
from server.engine.errors import BadRequestError, LoadError
from server.engine.interface.config import EngineConfig, EngineLimits
from server.engine.interface.generation_config import GenerationDefaults, read_generation_config
from server.engine.interface.validation import check_parameters
from server.engine.native.backend import NativeBackend
from server.engine.pytorch.backend import TorchBackend

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "int8": torch.float32,  # only the weights, and the products with them, are int8
    "int4": torch.float32,  # the same
}


def make_backend(model: Model, config: EngineConfig, progress: Progress) -> Backend:
    """Load a model's weights into the requested backend, or into the first that can run it.

    Raises:
        LoadError: the configuration contradicts itself, this machine cannot run it, or the weights cannot be loaded.
    """
    refusal = why_not(config)
    if refusal is not None:
        raise LoadError(refusal)
    obstacle = why_not_native(config)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise LoadError(f"device {config.device!r} is not available on this machine: use 'cpu'")
    if config.device.startswith("cuda:") and int(config.device[5:]) >= torch.cuda.device_count():
        raise LoadError(
            f"device {config.device!r} does not exist: this machine has {torch.cuda.device_count()}, numbered from 0"
        )
    if config.backend != "torch" and obstacle is None:
        return NativeBackend.load(model, config)
    return TorchBackend.load(model, config, _DTYPES[config.dtype], progress)


def read_defaults(model: Model, config: EngineConfig) -> GenerationDefaults:
    """The defaults from generation_config.json, or if it is missing from config.json: older models have one file.

    Raises:
        LoadError: the file cannot be read, or asks for something the engine does not support or its limits forbid.
    """
    try:
        path, content = model.generation
    except InvalidRequestError as error:
        raise LoadError(str(error)) from error
    spec = model.spec
    defaults = read_generation_config(
        content,
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
        raise LoadError(f"{path} does not suit the settings that the model is loaded with: {error}") from error
    return defaults
