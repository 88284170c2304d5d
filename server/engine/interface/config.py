"""How a model is loaded, and what it then accepts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

MOST_THREADS = 1024  # far more than pays off; a hundred thousand take the system down


def _setting(default: Any, about: str) -> Any:
    """A field that whoever serves or measures a model may set; `about` is the help of every command."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded; fixed for the life of its engine."""

    # "auto", for `dtype_choice`, is never what an engine runs in.
    dtype: str = _setting(
        "float32",
        "auto (the fastest whose recorded quality holds), float32, bfloat16; on CPUs also int8, int4 (for a model that "
        "was calibrated) and float64; on CUDA float16",
    )
    device: str = _setting("cpu", "cpu, cuda, or one of several devices as in cuda:1")
    backend: str = _setting("auto", "auto (the first that can), native (our operator for CPUs), torch")
    graphs: str = _setting(
        "auto", "auto (on where the device is CUDA), on, off: whether steps are recorded at load and replayed"
    )
    quantization: str = _setting(
        "none", "none, bnb-int8, bnb-nf4: the layers' weights by bitsandbytes in 8 or 4 bits, computing in dtype"
    )
    threads: int | None = _setting(
        None, "threads on a CPU; by default the model's share of what this process may use, within one memory node"
    )
    slots: int = _setting(32, "sequences that run at once")
    max_source_tokens: int = _setting(512, "the longest source")
    max_new_tokens: int = _setting(256, "the longest answer")
    max_encode_tokens: int = _setting(
        1024, "the most positions, padding included, encoded in one step; one source may exceed it"
    )
    max_decode_tokens: int = 512  # most tokens that enter the decoder in one step; one sequence may exceed it
    spare_slots: int = 0  # beyond `slots`, so that small requests find room beside one that has all of those
    # While all running sequences are greedy, run steps for this long before looking at the results: a small model's
    # step takes less than the work around it. Newcomers may start this much later. 0: never; CUDA has graphs instead.
    ahead_s: float = 0.001
    source_cache_bytes: int = 0  # memory for encoded sources that later requests may read again; 0: none

    def with_spare_slots(self) -> "EngineConfig":
        """The same for an engine that serves several callers."""
        return replace(self, spare_slots=max(1, self.slots // 8))

    def within(self, positions: int | None) -> "EngineConfig":
        """Limit sources and targets to a model's `positions`; None: no limit."""
        if positions is None:
            return self
        return replace(
            self,
            max_source_tokens=min(self.max_source_tokens, positions),
            max_new_tokens=min(self.max_new_tokens, positions),
        )


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What one loaded engine accepts; a request beyond it is refused before it queues."""

    max_source_tokens: int
    max_new_tokens: int  # with the decoder prefix
    slots: int
    spare_slots: int = 0

    @classmethod
    def of(cls, config: EngineConfig) -> "EngineLimits":
        """The limits of an engine loaded with this configuration."""
        return cls(
            max_source_tokens=config.max_source_tokens,
            max_new_tokens=config.max_new_tokens,
            slots=config.slots,
            spare_slots=config.spare_slots,
        )


SETTINGS: Mapping[str, str] = MappingProxyType(
    {each.name: each.metadata["about"] for each in fields(EngineConfig) if "about" in each.metadata}
)
