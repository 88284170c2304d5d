"""Small objects under ascending numbers, of which none is ever changed: versions, and the moves of an alias."""

from collections.abc import Sequence

from model_store.errors import CorruptStoreError
from model_store.objects.keys import number_name, parse_number
from model_store.storage.storage import Entry, Storage


def numbered(storage: Storage, folder: str) -> dict[int, Entry]:
    """The numbered objects of a folder, ascending."""
    found = ((parse_number(entry.name), entry) for entry in storage.entries(folder))
    # Names of one length are in the order of their numbers already; longer ones are not.
    return dict(sorted(((number, entry) for number, entry in found if number is not None), key=lambda pair: pair[0]))


def newest(storage: Storage, folder: str) -> int:
    """The highest number of a folder; 0 if there is none."""
    return max(numbered(storage, folder), default=0)


def check_risen(storage: Storage, folder: str, before: int) -> None:
    """After a number above `before` was taken by another writer: see that it is there.

    Raises:
        CorruptStoreError: it is not, so something else has its name, or numbers have come to their end.
    """
    if newest(storage, folder) <= before:
        raise CorruptStoreError(
            f"{storage.url}/{folder}/{number_name(before + 1)} is in the way, and is no pointer: move it away"
        )


def ranges(numbers: Sequence[int], most: int = 6) -> str:
    """Ascending numbers in few words, such as `1 to 3, 7`; "none" if there are none."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][-1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    if len(texts) > most:
        texts = [*texts[: most - 1], "...", texts[-1]]
    return ", ".join(texts) or "none"
