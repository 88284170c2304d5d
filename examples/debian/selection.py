"""Which packages have a description worth learning from."""

import re
from collections import Counter, defaultdict

from examples.debian.description_text import blocks, plain_key, synopsis_of
from examples.debian.package_index import Package

MOST_OF_A_SOURCE = 4  # of dozens of packages that differ in a processor's or a language's name, so many are enough
LEAST_WORDS = 8
SYNOPSIS_WORDS = range(2, 17)
_NO_DESCRIPTION = {"metapackages", "tasks", "oldlibs", "debug", "localization"}  # sections of templates
_EMPTY_PACKAGE = re.compile(
    r"\b(transitional|dummy|empty)( \w+)? package|\bpackage is (transitional|a transition)"
    r"|\bmeta-?package|\bsafely (be )?removed\b|debug(ging)? symbols",
    re.IGNORECASE,
)
# All that most Rust crates' descriptions say: nothing about the crate.
_SAYS_NOTHING = re.compile(
    r"This package contains the source for the Rust \S+ crate, packaged by debcargo .*? dh-cargo\."
)


def select(packages: list[Package], dropped: Counter[str]) -> list[Package]:
    """The packages that somebody described, at most a few of each source; why others are not there is counted."""
    kept: list[Package] = []
    seen: set[str] = set()
    for package in packages:
        reason = _objection(package)
        text = plain_key(package.descriptions.get("en", ""))
        if reason is None and text in seen:
            reason = "same description as another package, but for numbers"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(text)
        kept.append(package)
    of_source: dict[str, list[Package]] = defaultdict(list)
    for package in kept:
        of_source[package.source].append(package)
    few = [
        package
        for siblings in of_source.values()
        for package in sorted(siblings, key=lambda sibling: (len(sibling.name), sibling.name))[:MOST_OF_A_SOURCE]
    ]
    dropped[f"more than {MOST_OF_A_SOURCE} packages of one source"] += len(kept) - len(few)
    return sorted(few, key=lambda package: package.name)


def _objection(package: Package) -> str | None:
    """Why a package is of no use, or None."""
    description = package.descriptions.get("en")
    if description is None:
        return "no description"
    if package.section in _NO_DESCRIPTION:
        return f"section {package.section}"
    if package.section == "rust" and "+" in package.name:
        return "Rust feature package"
    if _EMPTY_PACKAGE.search(" ".join(description.split())):
        return "transitional, empty, meta or debug package"
    if len(_SAYS_NOTHING.sub("", " ".join(blocks(description))).split()) < LEAST_WORDS:
        return f"long description that says less than {LEAST_WORDS} words"
    if len(synopsis_of(description).split()) not in SYNOPSIS_WORDS:
        return f"synopsis of one word, or of more than {SYNOPSIS_WORDS.stop - 1}"
    return None
