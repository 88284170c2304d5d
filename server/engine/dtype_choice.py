"""Which dtype a model runs in when none is named: the fastest whose quality is known to hold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_store.version.quality import REFERENCE, QualityRecord, finding
from server.engine.capabilities import AUTO, speed_order
from server.engine.interface.config import EngineConfig


@dataclass(frozen=True, kw_only=True)
class DtypeChoice:
    """An engine's dtype, never "auto", and the reason for it."""

    dtype: str
    why: str


def choose_dtype(config: EngineConfig, records: Sequence[QualityRecord] = ()) -> DtypeChoice:
    """The requested dtype; for "auto" the fastest here whose recorded quality holds, else float32.

    `records` belong to the version being loaded; a model outside the store has none.

    Raises:
        LoadError: NASH_CPU_ISA asks for an instruction set that is not available here.
    """
    if config.dtype != AUTO:
        return DtypeChoice(dtype=config.dtype, why="asked for")
    if config.quantization != "none":
        return DtypeChoice(dtype=REFERENCE, why=f"no quality is recorded under quantization {config.quantization!r}")
    reasons: list[str] = []
    for dtype in speed_order(config):
        if dtype == REFERENCE:
            break
        found = finding(dtype, config.device.partition(":")[0], records)
        if found is not None and found.holds:
            return DtypeChoice(dtype=dtype, why="; ".join([found.why, *reasons]))
        reasons.append(f"{dtype}: " + ("no quality is recorded" if found is None else found.why))
    return DtypeChoice(dtype=REFERENCE, why="; ".join(reasons) or "nothing faster runs on this machine")


def with_dtype(config: EngineConfig, records: Sequence[QualityRecord] = ()) -> tuple[EngineConfig, DtypeChoice]:
    """The configuration with the dtype from `choose_dtype`, and the choice itself."""
    choice = choose_dtype(config, records)
    return replace(config, dtype=choice.dtype), choice
