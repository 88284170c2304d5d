"""All operations of the store in any order, against a dictionary that does the same."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from model_store.errors import InvalidRequestError, NotFoundError
from model_store.store import Store
from tests.model_store.aging import age
from tests.model_store.second_reader import check_second_reading
from tests.tiny_models import build_tiny_t5

NAMES, ALIASES = st.sampled_from(("g2p", "mt")), st.sampled_from(("default", "live", "old"))
NUMBERS, CONTENTS = st.integers(1, 8), st.integers(0, 2)


@dataclass
class Expected:
    """One name: the content of every version ever made, which are live, and every alias's stack of what it named."""

    contents: list[int] = field(default_factory=list)
    live: set[int] = field(default_factory=set)
    named: dict[str, list[int | None]] = field(default_factory=dict)  # the last is what it names now
    moves: dict[str, int] = field(default_factory=dict)

    def points(self, alias: str) -> int | None:
        return self.named.get(alias, [None])[-1]

    def move(self, alias: str, version: int | None) -> None:
        if alias not in self.named or self.named[alias][-1] != version:
            self.named.setdefault(alias, []).append(version)
            self.moves[alias] = self.moves.get(alias, 0) + 1


class StoreMachine(RuleBasedStateMachine):
    """One store, its copy and what both should hold."""

    model: Path  # set by the test
    steps = 0  # of all machines

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder / "store")
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def of(self, name: str) -> Expected:
        return self.expected.setdefault(name, Expected())

    @rule(name=NAMES, content=CONTENTS, alias=st.none() | ALIASES)
    def publish(self, name: str, content: int, alias: str | None) -> None:
        one = self.of(name)
        done = self.store.publish(name, self.model, metrics={"n": float(content)}, alias=alias)
        last = len(one.contents)
        aliased = None if alias is None else one.points(alias)
        if aliased in one.live and one.contents[aliased - 1] == content:
            wanted, created = aliased, False
        elif last in one.live and one.contents[last - 1] == content:
            wanted, created = last, False
        else:
            wanted, created = last + 1, True
            one.contents.append(content)
            one.live.add(wanted)
        assert (done.version, done.created) == (wanted, created)
        if wanted == 1 and created and "default" not in one.named:
            one.move("default", 1)
        if alias is not None:
            one.move(alias, wanted)

    @rule(name=NAMES, number=NUMBERS, alias=ALIASES)
    def tag(self, name: str, number: int, alias: str) -> None:
        one = self.of(name)
        if number in one.live:
            assert alias in self.store.tag(f"{name}:{number}", alias).aliases
            one.move(alias, number)
        else:
            with pytest.raises(NotFoundError):
                self.store.tag(f"{name}:{number}", alias)

    @rule(name=NAMES, alias=ALIASES)
    def untag(self, name: str, alias: str) -> None:
        one = self.of(name)
        if one.points(alias) is None:
            with pytest.raises(NotFoundError):
                self.store.untag(name, alias)
        else:
            self.store.untag(name, alias)
            one.move(alias, None)

    @rule(name=NAMES, alias=ALIASES)
    def rollback(self, name: str, alias: str) -> None:
        one = self.of(name)
        stack = one.named.get(alias, [])
        if len(stack) > 1 and (stack[-2] is None or stack[-2] in one.live):
            assert self.store.rollback(name, alias).version == stack[-2]
            stack.pop()
            one.moves[alias] += 1
        else:
            with pytest.raises(InvalidRequestError):
                self.store.rollback(name, alias)

    @rule(name=NAMES, number=NUMBERS)
    def remove(self, name: str, number: int) -> None:
        one = self.of(name)
        named = number in {one.points(alias) for alias in one.named}
        if number in one.live and not named:
            self.store.remove(f"{name}:{number}")
            one.live.discard(number)
        else:
            with pytest.raises(InvalidRequestError):  # NotFoundError is one too
                self.store.remove(f"{name}:{number}")

    @rule(old=st.booleans())
    def collect(self, old: bool) -> None:
        if self.store.root.is_dir():
            if old:
                age(self.store.root)
            self.store.collect()
            if old:
                blobs = {path.name for path in (self.store.root / "blobs").rglob("*") if path.is_file()}
                needed = {version.digest for version in self.store.list()}
                needed |= {file.sha256 for version in self.store.list() for file in version.manifest.files}
                assert blobs == needed

    @rule(name=NAMES, number=NUMBERS)
    def copy(self, name: str, number: int) -> None:
        if number in self.of(name).live:
            other = Store(self.folder / "other")
            self.store.copy_to(other, f"{name}:{number}", alias="copied")
            assert other.resolve(f"{name}@copied").digest == self.store.resolve(f"{name}:{number}").digest

    @invariant()
    def holds_what_it_should(self) -> None:
        StoreMachine.steps += 1
        found = self.store.list()
        wanted: list[tuple[Any, ...]] = []
        for name, one in sorted(self.expected.items()):
            for number in sorted(one.live):
                aliases = tuple(sorted(alias for alias in one.named if one.points(alias) == number))
                wanted.append((name, number, aliases, {"n": float(one.contents[number - 1])}))
            for alias, count in one.moves.items():
                if one.contents:
                    assert len(self.store.history(name, alias)[alias]) == count
        assert [(v.name, v.version, v.aliases, dict(v.manifest.metrics)) for v in found] == wanted
        if self.store.root.is_dir():
            check_second_reading(self.store)


@pytest.mark.parametrize(
    ("examples", "least_steps"), [(30, 400), pytest.param(150, 2000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_any_order_of_operations(examples: int, least_steps: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    StoreMachine.steps = 0
    StoreMachine.model = build_tiny_t5(tmp_path_factory.mktemp("model") / "tiny")
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert StoreMachine.steps >= least_steps
