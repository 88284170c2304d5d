"""Reads the Dockerfile, .dockerignore and the Compose files, as far as the tests need."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile: by stage its instructions, word and rest; `FROM` comes first and has the base alone."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = []
            rest = base
        found[list(found)[-1]].append((word, " ".join(rest.split())))
    return found


def instructions(stage: str) -> list[tuple[str, str]]:
    """Those of a stage and, before them, of the stages it is made from."""
    own = stages()[stage]
    base = own[0][1]
    return (instructions(base) if base in stages() else []) + own


def image_environment(stage: str) -> dict[str, str]:
    """What ENV sets."""
    pairs = [rest for word, rest in instructions(stage) if word == "ENV"]
    return {name: value.strip('"') for pair in pairs for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', pair)}


def health_check(stage: str) -> list[str]:
    """The command of a stage's HEALTHCHECK."""
    [rest] = [rest for word, rest in instructions(stage) if word == "HEALTHCHECK"]
    command: list[str] = json.loads(rest[rest.index(" CMD ") + len(" CMD ") :])
    return command


def entry_point(stage: str) -> list[str]:
    """The command of a stage's ENTRYPOINT."""
    [rest] = [rest for word, rest in instructions(stage) if word == "ENTRYPOINT"]
    command: list[str] = json.loads(rest)
    return command


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file or folder from the builder: the last line that matches decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        names = [str(each) for each in (PurePosixPath(path), *PurePosixPath(path).parents) if str(each) != "."]
        if any(_matches(name, pattern) for name in names):
            ignored = not line.startswith("!")
    return ignored


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(name.rpartition("/")[2], pattern.removeprefix("**/"))
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def plain(name: str) -> str:
    """A Compose file without Compose's own tag, which other readers of YAML do not know."""
    return (ROOT / name).read_text(encoding="utf-8").replace(" !override", "")


def compose(*names: str, **environment: str) -> dict[str, Any]:
    """Compose files, later ones over earlier ones, `${NAME:-default}` filled in."""
    merged: dict[str, Any] = {}
    for name in names or ("docker-compose.yml",):
        merged = _merge(merged, yaml.safe_load(_VARIABLE.sub(lambda m: environment.get(m[1], m[2] or ""), plain(name))))
    return merged


def _merge(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merge(below[key], value) if key in below else value for key, value in above.items()}
