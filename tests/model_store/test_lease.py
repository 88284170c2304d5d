"""One collection at a time on storage that has no locks. A folder stands for it: the lease uses only the interface."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from model_store.errors import StoreAccessError
from model_store.objects import keys
from model_store.operations import lease
from model_store.operations.lease import LEASE_SECONDS, _this_process, alone
from model_store.operations.place import Place
from model_store.storage.local import LocalStorage


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(storage=LocalStorage(tmp_path / "far"), local=LocalStorage(tmp_path / "near"))


def left_behind(place: Place, age_s: float, **owner: object) -> str:
    """A lease of a process that did not end it."""
    key = keys.collection(4)
    place.storage.create(key, json.dumps(owner).encode())
    made = time.time() - age_s
    os.utime(Path(place.storage.url) / key, (made, made))
    return key


def leases(place: Place) -> list[str]:
    return [entry.name for entry in place.storage.entries(keys.COLLECTIONS)]


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_second_is_refused_until_the_first_has_ended(place: Place) -> None:
    with alone(place):
        with pytest.raises(StoreAccessError, match="another collection is at work"), alone(place):
            raise AssertionError("two at once")
        assert leases(place) == ["000001"]
    assert leases(place) == []
    with alone(place):
        pass


def test_of_many_at_one_moment_one_at_a_time_works(place: Place) -> None:
    start, inside, seen, refused = threading.Barrier(8), threading.Lock(), [0], [0]

    def work() -> None:
        start.wait()
        try:
            with alone(place):
                assert inside.acquire(blocking=False)
                seen[0] += 1
                time.sleep(0.01)
                inside.release()
        except StoreAccessError:
            refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] >= 1
    assert seen[0] + refused[0] == 8
    assert leases(place) == []


@pytest.mark.parametrize(
    "owner", [{"host": "elsewhere", "process": 1}, _this_process() | {"process": os.getppid()}, {}]
)
def test_one_that_may_be_at_work_counts_for_an_hour(owner: dict[str, object], place: Place) -> None:
    key = left_behind(place, LEASE_SECONDS - 60, **owner)
    with pytest.raises(StoreAccessError, match=f"delete the object {key}"), alone(place):
        raise AssertionError("two at once")
    assert leases(place) == ["000004"]
    place.storage.delete(key)
    left_behind(place, LEASE_SECONDS + 60, **owner)
    with alone(place):
        assert leases(place) == ["000005"]
    assert leases(place) == []


def test_one_of_a_dead_process_of_this_machine_is_over(place: Place) -> None:
    left_behind(place, 1, **_this_process() | {"process": dead_process()})
    with alone(place):
        assert leases(place) == ["000005"]


@pytest.mark.parametrize("other", ["host", "boot", "namespace"])
def test_one_of_a_process_that_cannot_be_seen_from_here_counts(other: str, place: Place) -> None:
    left_behind(place, 1, **_this_process() | {"process": dead_process(), other: "another"})
    with pytest.raises(StoreAccessError, match="another collection is at work"), alone(place):
        raise AssertionError("two at once")


def test_it_is_renewed_while_the_work_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(place) as hold:
        hold()
        assert leases(place) == ["000001"]
        now = lease._now()
        monkeypatch.setattr(lease, "_now", lambda: now + LEASE_SECONDS / 5)
        hold()
        assert leases(place) == ["000002"]
        place.storage.create(keys.collection(3), b"{}")  # of one that is about to give up
        monkeypatch.setattr(lease, "_now", lambda: now + LEASE_SECONDS / 2)
        hold()
        assert leases(place) == ["000003", "000004"]


def test_after_a_long_sleep_nothing_is_deleted_any_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(place) as hold:
        now = lease._now()
        monkeypatch.setattr(lease, "_now", lambda: now + LEASE_SECONDS)
        with pytest.raises(StoreAccessError, match="held up for too long"):
            hold()


def test_whoever_lost_it_stops_and_leaves_the_other_ones(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(place) as hold:
        place.storage.delete(keys.collection(1))
        left_behind(place, 1, host="elsewhere", process=1)
        now = lease._now()
        monkeypatch.setattr(lease, "_now", lambda: now + LEASE_SECONDS / 5)
        with pytest.raises(StoreAccessError, match="another collection is at work"):
            hold()
    assert leases(place) == ["000004"]
