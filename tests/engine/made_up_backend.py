"""A backend without a model: its logits are a hash of what a slot should hold, so that any mix-up of slots shows."""

import math
from collections.abc import Sequence as Collection

import torch
from torch import Tensor

from model_store.model.config import spec_of
from server.engine.backend import Feed, GreedyStep
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.generation_config import GenerationDefaults
from server.engine.interface.parameters import GenerationParameters

VOCABULARY = 40
EOS_ID = 1
SECOND_EOS_ID = 2
START_ID = 0
POISON = 39  # in a source, or once it was generated: NaN


class MadeUpBackend:
    """Implements `backend.Backend`, and asserts what a backend may rely on."""

    def __init__(self, slots: int) -> None:
        self.sources: list[tuple[int, ...] | None] = [None] * slots
        self.targets: list[tuple[int, ...]] = [()] * slots
        self.copied = 0  # slots whose state another's was copied to by `reorder`
        self.encoded: list[int] = []  # how many sources each call had

    def encode(self, sources: Collection[list[int]], slots: Collection[Collection[int]]) -> int:
        self.encoded.append(len(sources))
        for source, of_source in zip(sources, slots, strict=True):
            for slot in of_source:
                self.sources[slot], self.targets[slot] = tuple(source), ()
        longest = max(len(source) for source in sources)
        return sum(longest - len(source) for source in sources)

    def decode(self, feed: Feed) -> Tensor:
        assert feed.slots == sorted(feed.slots), "slots out of order"
        assert feed.wanted == sorted(set(feed.wanted))
        logits = {}
        for i, (token, position, slot) in enumerate(zip(feed.tokens, feed.positions, feed.slots, strict=True)):
            assert position == len(self.targets[slot]), "a position twice, or left out"
            self.targets[slot] += (token,)
            if i in feed.wanted:
                logits[i] = self._logits(slot)
        return torch.stack([logits[i] for i in feed.wanted])

    def decode_ahead(self, feed: Feed, *, steps: int, ends: Collection[int], seconds: float) -> list[GreedyStep]:
        raise AssertionError("it does not run ahead")

    def reorder(self, targets: Collection[int], origins: Collection[int], length: int) -> None:
        assert set(origins) <= set(targets)
        assert len({self.sources[slot] for slot in targets}) == 1, "beams of several sources"
        assert all(len(self.targets[slot]) == length for slot in targets)
        states = [self.targets[slot] for slot in origins]
        for slot, origin, state in zip(targets, origins, states, strict=True):
            self.targets[slot] = state
            self.copied += slot != origin

    def move(self, origin: int, target: int, *, source_length: int, length: int) -> None:
        source = self.sources[origin]
        assert source is not None
        assert (len(source), len(self.targets[origin])) == (source_length, length)
        self.sources[target], self.targets[target] = source, self.targets[origin]

    def clear(self, slot: int) -> None:
        self.sources[slot], self.targets[slot] = None, ()

    has_own_threads = False
    rows_cost = True
    runs_ahead = False

    @property
    def path(self) -> None:
        return None

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": 0, "cache": 0}

    def _logits(self, slot: int) -> Tensor:
        source, target = self.sources[slot], self.targets[slot]
        assert source is not None, "an empty slot is decoded"
        if POISON in source or POISON in target:
            return torch.full((VOCABULARY,), math.nan)
        generator = torch.Generator().manual_seed(hash((source, target)) % 2**63)  # hashes of numbers do not vary
        logits = 2 * torch.randn(VOCABULARY, generator=generator)
        logits[[EOS_ID, SECOND_EOS_ID]] += 2.0
        return logits


class AheadMadeUpBackend(MadeUpBackend):
    """Runs ahead; its clock stands still."""

    runs_ahead = True

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.made_ahead: list[int] = []  # steps of each call

    def decode_ahead(self, feed: Feed, *, steps: int, ends: Collection[int], seconds: float) -> list[GreedyStep]:
        assert steps >= 1
        assert seconds > 0
        assert feed.wanted == list(range(len(feed.tokens)))
        made: list[GreedyStep] = []
        tokens, positions = feed.tokens, feed.positions
        while len(made) < steps:
            logits = self.decode(Feed(tokens=tokens, positions=positions, slots=feed.slots, wanted=feed.wanted))
            max_logits, best = logits.max(-1)
            made.append(GreedyStep(tokens=best.tolist(), max_logits=max_logits.tolist()))
            tokens, positions = made[-1].tokens, [position + 1 for position in positions]
            if set(tokens) & set(ends) or not all(map(math.isfinite, made[-1].max_logits)):
                break
        self.made_ahead.append(len(made))
        return made


def make_engine(
    slots: int = 6,
    *,
    max_new_tokens: int = 16,
    eos_ids: tuple[int, ...] = (EOS_ID,),
    backend: type[MadeUpBackend] = MadeUpBackend,
    **config: float,
) -> tuple[Engine, MadeUpBackend]:
    """An engine over a made-up backend."""
    spec = spec_of(
        {
            "model_type": "t5",
            "vocab_size": VOCABULARY,
            "d_model": 4,
            "d_kv": 2,
            "num_heads": 2,
            "d_ff": 4,
            "num_layers": 1,
            "eos_token_id": EOS_ID,
        }
    )
    made_up = backend(slots + int(config.get("spare_slots", 0)))
    defaults = GenerationDefaults(
        parameters=GenerationParameters(max_new_tokens=max_new_tokens),
        max_length=None,
        min_length=None,
        most_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        decoder_start_id=START_ID,
    )
    engine_config = EngineConfig(slots=slots, max_source_tokens=12, max_new_tokens=max_new_tokens, **config)  # type: ignore[arg-type]
    return Engine(spec, made_up, engine_config, defaults=defaults), made_up
