from dataclasses import dataclass

import pytest

from server.errors import InvalidInputError, NotServedError
from server.frontend.traffic.routing import baseline_of, dense_or_first, family_of_first, route


@dataclass(frozen=True)
class Loaded:
    model: str
    variant: str
    version: int | None = None
    is_default: bool = False
    digest: str | None = None

    @property
    def ref(self) -> str:
        return f"{self.model}@{self.variant}"


@dataclass(frozen=True)
class Numbered(Loaded):
    @property
    def ref(self) -> str:
        return f"{self.model}:{self.version}"


SUMMARY = Loaded("summary", "pruned", 3)
FAST, DENSE = Loaded("g2p", "pruned", 2), Loaded("g2p", "dense", 1, digest="0a" * 32)
LOADED = [SUMMARY, FAST, DENSE]


@pytest.mark.parametrize(
    ("ref", "variant"),
    [
        (None, SUMMARY),
        ("g2p", DENSE),
        ("summary", SUMMARY),
        ("g2p@pruned", FAST),
        ("g2p:1", DENSE),
        ("g2p:02", FAST),
        ("g2p@sha256:" + "0a" * 32, DENSE),
    ],
)
def test_a_ref_finds_its_variant(ref: str | None, variant: Loaded) -> None:
    assert route(ref, LOADED) is variant


@pytest.mark.parametrize("ref", ["other", "g2p@other", "g2p:3", "summary@dense", "g2p@sha256:" + "0b" * 32])
def test_what_is_not_loaded_is_answered_with_what_is(ref: str) -> None:
    with pytest.raises(NotServedError, match=f"'{ref}' is not loaded: use one of summary@pruned, g2p@pruned"):
        route(ref, LOADED)


@pytest.mark.parametrize("ref", ["", "G2P", "a@b@c", "a:x", "../etc", "a:0"])
def test_what_is_no_ref_is_refused(ref: str) -> None:
    with pytest.raises(InvalidInputError, match="not valid"):
        route(ref, LOADED)


def test_a_bare_name_is_the_default_variant_where_it_is_loaded() -> None:
    default = Loaded("g2p", "v3", 3, is_default=True)
    assert route("g2p", [*LOADED, default]) is default
    assert route("g2p@dense", [*LOADED, default]) is DENSE
    assert baseline_of("g2p", [*LOADED, default]) is DENSE, "what is compared with is not what is called"


def test_a_variant_loaded_by_number_is_called_by_it() -> None:
    numbered = Numbered("g2p", "v2", 2)
    assert route("g2p:2", [*LOADED, numbered]) is numbered, "and not the alias of the same version"
    assert route("g2p@pruned", [*LOADED, numbered]) is FAST


def test_families_and_baselines() -> None:
    assert family_of_first([FAST, SUMMARY, DENSE]) == [FAST, DENSE]
    assert dense_or_first([FAST, DENSE]) is DENSE
    assert dense_or_first([FAST]) is FAST


def test_the_baseline_is_the_familys_dense_variant_or_its_first() -> None:
    assert baseline_of("g2p", LOADED) is DENSE
    assert baseline_of("summary", LOADED) is SUMMARY
