"""Strict readers for the keys of a `config.json`. An error names the key, its value, and what it must be."""

import reprlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from model_store.errors import UnsupportedModelError

Heads = tuple[int, ...]

# Far above every real model: a hostile config must not make us allocate whatever it claims.
MOST_LAYERS_OR_HEADS = 1000
MOST_WIDTH = 100_000  # of the hidden states
MOST_UNITS = 1 << 20  # of a feed-forward
MOST_TOKENS = 1 << 24  # of a vocabulary
MOST_POSITIONS = 1 << 17  # of a source or a target


def bad(key: str, value: object, wanted: str) -> UnsupportedModelError:
    """The error for a key whose value cannot be used."""
    return UnsupportedModelError(f"config.json: {key} is {reprlib.repr(value)}: it must be {wanted}")


def text(config: Mapping[str, Any], key: str, default: str) -> str:
    """A text."""
    value = config.get(key, default)
    if not isinstance(value, str):
        raise bad(key, value, "a text")
    return value


def flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """True or false."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise bad(key, value, "true or false")
    return value


def count(config: Mapping[str, Any], key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
    """A whole number from 1 to `most`; null counts as absent."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise bad(key, value, f"a whole number from 1 to {most}")
    return value


def bounded(config: Mapping[str, Any], key: str, most: int) -> int:
    """A whole number from 0 to `most`."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise bad(key, value, f"a whole number from 0 to {most}")
    return value


def token(config: Mapping[str, Any], key: str, default: int, vocab_size: int) -> int:
    """A token id. Null counts as absent, a one-item list as its item."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise bad(key, value, f"a token id below vocab_size, {vocab_size}")
    return value


def positive(config: Mapping[str, Any], key: str, default: float) -> float:
    """A number between 0 and 1, both excluded."""
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise bad(key, value, "a small positive number")
    return float(value)


def layers(config: Mapping[str, Any], key: str, number: int) -> list[Mapping[str, Any]]:
    """A list of `number` objects."""
    value = config.get(key)
    if not isinstance(value, list) or len(value) != number or not all(isinstance(v, dict) for v in value):
        raise bad(key, value, f"a list of {number} layers")
    return value


def hidden(config: Mapping[str, Any], key: str, d_model: int) -> tuple[int, ...]:
    """An ascending list of dimensions below `d_model`, at least one; null and an absent key count as all."""
    value = config.get(key)
    if value is None:
        return tuple(range(d_model))
    wanted = f"an ascending list of at least one number below d_model, {d_model}"
    if not isinstance(value, list) or not value or not all(type(v) is int for v in value):
        raise bad(key, value, wanted)
    if value[0] < 0 or value[-1] >= d_model or any(b <= a for a, b in pairwise(value)):
        raise bad(key, value, wanted)
    return tuple(value)


def heads(layer: Mapping[str, Any], key: str, num_heads: int) -> Heads:
    """An ascending list of head numbers."""
    value = layer.get(key)
    fits = isinstance(value, list) and all(
        isinstance(h, int) and not isinstance(h, bool) and 0 <= h < num_heads for h in value
    )
    if not fits or not isinstance(value, list) or sorted(set(value)) != value:
        raise bad(key, value, f"an ascending list of head numbers below {num_heads}")
    return tuple(value)
