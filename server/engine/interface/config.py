"""How a model is loaded, and what it accepts from then on."""

from dataclasses import dataclass, replace

MOST_THREADS = 1024  # far more than pays; a hundred thousand take the system down with them


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded; fixed for the life of its engine."""

    dtype: str = "float32"  # see `capabilities`; "auto", for `dtype_choice`, is never what an engine runs in
    device: str = "cpu"
    backend: str = "auto"  # "native", our operator for CPUs; "torch"; "auto" takes the first that can
    graphs: str = "auto"  # steps recorded once and replayed: "auto" is "on" on CUDA, else "off"
    quantization: str = "none"  # "bnb-int8", "bnb-nf4": the layers' weights by bitsandbytes, computing in `dtype`
    threads: int | None = None  # None: as many as torch has, within the quota; natively, those of one memory node
    slots: int = 32  # how many sequences can run at once
    max_source_tokens: int = 512
    max_new_tokens: int = 256
    max_encode_tokens: int = 1024  # most positions, padding included, encoded in one step; one source may exceed it
    max_decode_tokens: int = 512  # most tokens that enter the decoder in one step; one sequence may exceed it
    # Where all that run are greedy, steps are run for so long before anybody looks at them: a small model's step takes
    # less than what surrounds it. It is how much later a newcomer may begin. 0: never; CUDA has graphs instead.
    ahead_s: float = 0.001

    def within(self, positions: int | None) -> "EngineConfig":
        """For a model with so many positions: neither sources nor targets are longer. None: it has any number."""
        if positions is None:
            return self
        return replace(
            self,
            max_source_tokens=min(self.max_source_tokens, positions),
            max_new_tokens=min(self.max_new_tokens, positions),
        )


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What one loaded engine accepts; a request beyond it is refused before it waits."""

    max_source_tokens: int
    max_new_tokens: int  # with the decoder prefix
    slots: int

    @classmethod
    def of(cls, config: EngineConfig) -> "EngineLimits":
        """Of an engine that is loaded so."""
        return cls(max_source_tokens=config.max_source_tokens, max_new_tokens=config.max_new_tokens, slots=config.slots)
