"""How a model is loaded, and what it then accepts."""

from dataclasses import dataclass, replace

MOST_THREADS = 1024  # far more than pays off; a hundred thousand take the system down


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded; fixed for the life of its engine."""

    dtype: str = "float32"  # see `capabilities`; `dtype_choice` resolves "auto", so no engine runs in it
    device: str = "cpu"
    backend: str = "auto"  # "native" (our CPU operator), "torch", or "auto": the first that can run the model
    graphs: str = "auto"  # record steps once and replay them; "auto" is "on" on CUDA, else "off"
    quantization: str = "none"  # "bnb-int8", "bnb-nf4": the layers' weights by bitsandbytes, computing in `dtype`
    threads: int | None = None  # None: torch's number, within the quota; native: at most one memory node's cores
    slots: int = 32  # how many sequences can run at once
    max_source_tokens: int = 512
    max_new_tokens: int = 256
    max_encode_tokens: int = 1024  # most positions, padding included, encoded in one step; one source may exceed it
    max_decode_tokens: int = 512  # most tokens that enter the decoder in one step; one sequence may exceed it
    # While all running sequences are greedy, run steps for this long before looking at the results: a small model's
    # step takes less than the work around it. Newcomers may start this much later. 0: never; CUDA has graphs instead.
    ahead_s: float = 0.001

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

    @classmethod
    def of(cls, config: EngineConfig) -> "EngineLimits":
        """The limits of an engine loaded with this configuration."""
        return cls(max_source_tokens=config.max_source_tokens, max_new_tokens=config.max_new_tokens, slots=config.slots)
