"""Whether there is memory for one more model."""

from collections.abc import Iterable

from server.engine.machine.host_memory import available_bytes
from server.errors import NoRoomError, SettingsError
from server.frontend.resolution import ResolvedVariant

PROCESS_BYTES = 350_000_000  # a worker before it has loaded anything: Python and torch
_BYTES_OF_A_WEIGHT = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 0.6}


def needed_bytes(resolved: ResolvedVariant) -> int:
    """About what a worker takes with this model: itself, the weights in their dtype, the caches of all slots."""
    config, spec = resolved.request.engine, resolved.found.model.spec
    weight = _BYTES_OF_A_WEIGHT[config.dtype]
    stored = sum(file.stat().st_size for file in resolved.found.model.folder.glob("*.safetensors"))
    parameters = resolved.parameters or stored // 2
    positions = (config.slots + config.spare_slots) * (config.max_source_tokens + config.max_new_tokens)
    caches = positions * len(spec.decoder) * 2 * spec.d_model * max(2, min(weight, 4))
    return int(PROCESS_BYTES + parameters * weight + caches + config.source_cache_bytes)


def on_cpu(resolved: ResolvedVariant) -> bool:
    """Whether it takes the machine's memory."""
    return resolved.request.engine.device == "cpu"


def check_budget(models: Iterable[ResolvedVariant], budget_bytes: int) -> None:
    """Refuse models that together exceed a budget; 0 is none.

    Raises:
        SettingsError: they do.
    """
    needed = sum(needed_bytes(each) for each in models if on_cpu(each))
    if budget_bytes and needed > budget_bytes:
        raise SettingsError(
            f"the models take about {needed / 1e6:.0f} MB, and --memory-bytes allows {budget_bytes / 1e6:.0f} MB: "
            "serve fewer, with fewer slots, or in smaller dtypes"
        )


def check_room(resolved: ResolvedVariant, loaded_bytes: Iterable[int], budget_bytes: int) -> None:
    """Refuse a model that cannot fit: into the budget beside what is loaded, or, without a budget, into the machine.

    Models on a GPU are not checked: their workers find out themselves.

    Raises:
        NoRoomError: it cannot.
    """
    if not on_cpu(resolved):
        return
    needed = needed_bytes(resolved)
    used = sum(loaded_bytes)
    free = budget_bytes - used if budget_bytes else available_bytes()
    if needed > free:
        where = f"{used / 1e6:.0f} of {budget_bytes / 1e6:.0f} MB are taken" if budget_bytes else "on this machine"
        raise NoRoomError(
            f"{resolved.ref} takes about {needed / 1e6:.0f} MB, and {max(0, free) / 1e6:.0f} MB are free ({where}): "
            "unload a model first, or load this one with fewer slots or in a smaller dtype"
        )
