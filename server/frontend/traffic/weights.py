"""How the requests that name only a model are divided among its variants."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.frontend.variant import Variant

_HASHED = 1 << 64


@dataclass(frozen=True, kw_only=True)
class ShadowPlan:
    """A share of the answers of one variant is compared with those of another."""

    source: str  # the variant that answers
    target: str  # the variant that is tried
    fraction: float  # of the source's answers


@dataclass(frozen=True, kw_only=True)
class TrafficPlan:
    """What an operator has set for one model. Without weights, a bare name means what it means in the store."""

    weights: Mapping[str, float]  # by variant; those that are not named get nothing
    shadow: ShadowPlan | None

    def choose(self, variants: Sequence[Variant], session: str | None) -> Variant | None:
        """The variant for one request, of the model's loaded ones; None if no weight says anything.

        Requests of one session go to one variant as long as the weights and the variants stay. Variants that are not
        ready get nothing while another one is.
        """
        weighed = [variant for variant in variants if self.weights.get(variant.variant, 0) > 0]
        ready = [variant for variant in weighed if variant.supervisor.available] or weighed
        if not ready:
            return None
        at = _place(session, ready[0].model) * sum(self.weights[variant.variant] for variant in ready)
        for variant in ready:
            at -= self.weights[variant.variant]
            if at < 0:
                return variant
        return ready[-1]


NO_PLAN = TrafficPlan(weights={}, shadow=None)


def _place(session: str | None, model: str) -> float:
    """From 0 to below 1: a draw, or always the same for one session of one model."""
    if session is None:
        return random.random()
    digest = hashlib.blake2b(f"{model} {session}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _HASHED
