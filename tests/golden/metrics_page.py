"""Reading Prometheus' text format, as far as names go."""

import re
from typing import Any

_TYPE = re.compile(r"# TYPE (\S+) (\S+)")
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? \S+")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# Labels whose values are words that dashboards know; those of others name models, versions or bounds.
_WORDS = ("baseline", "direction", "kind", "mode", "outcome", "path")


def names_of(page: str) -> dict[str, Any]:
    """The page's metrics with their types, and their samples by name with labels; no values."""
    types: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    words: dict[str, dict[str, set[str]]] = {}
    for line in page.splitlines():
        if found := _TYPE.fullmatch(line):
            types[found[1]] = found[2]
        elif found := _SAMPLE.fullmatch(line):
            given = dict(_LABEL.findall(found[2] or ""))
            labels.setdefault(found[1], set()).update(given)
            for label in _WORDS:
                if label in given:
                    words.setdefault(found[1], {}).setdefault(label, set()).add(given[label])
        else:
            assert line.startswith("# HELP "), line
    return {
        "types": dict(sorted(types.items())),
        "labels": {name: sorted(names) for name, names in sorted(labels.items())},
        "words": {
            name: {label: sorted(values) for label, values in sorted(given.items())}
            for name, given in sorted(words.items())
        },
    }
