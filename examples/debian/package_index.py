"""Debian's package index: fetched by apt into a folder of its own, and read.

Nothing of the machine's own apt is changed: its lists, its caches and its hooks are left alone, and no root is needed.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("en", "it")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHITECTURE = "amd64"  # whatever this machine is: the same rows everywhere
# What the machine says about reaching mirrors stands; what it says about these would change what is fetched.
_OWN_SETTINGS = ("Acquire::Languages", "Acquire::GzipIndexes", "Acquire::CompressionTypes", "Acquire::IndexTargets")


class IndexUnavailableError(Exception):
    """The package index cannot be had here; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One binary package: the source package it is built from, and its descriptions as they stand in the index."""

    name: str
    source: str
    section: str
    descriptions: dict[str, str]  # by language; the first line is the synopsis


def own_mirror(suite: str) -> str:
    """The Debian mirror that this machine's own apt uses; that of `suite` before others.

    Raises:
        IndexUnavailableError: there is no apt, or it uses none.
    """
    _check_apt()
    form = "$(ORIGIN)\t$(RELEASE)\t$(REPO_URI)"
    asked = ["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Component: main"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    # Before its first update apt does not know whose an archive is.
    found = [(release, uri) for origin, release, uri in map(_fields, told.splitlines()) if origin in ("Debian", "")]
    whole = sorted(((release != suite, uri) for release, uri in found if "-" not in release))  # no -security, -updates
    if not whole:
        raise IndexUnavailableError("apt uses no mirror of Debian here: give one, --mirror URL")
    return whole[0][1].rstrip("/")


def _fields(line: str) -> tuple[str, str, str]:
    origin, release, uri = line.split("\t")
    return origin, release, uri


def _check_apt() -> None:
    if shutil.which("apt-get") is None or shutil.which("apt-config") is None:
        raise IndexUnavailableError(
            "apt-get is not here: run this on Debian or Ubuntu (a container of debian:stable will do), "
            "or copy the data folder from such a machine"
        )


def fetch(folder: Path, mirror: str, suite: str) -> None:
    """Bring the index of a suite's main component, with English and Italian descriptions, into `folder`.

    Raises:
        IndexUnavailableError: this is no machine with apt and Debian's keys, or the mirror cannot be reached.
    """
    _check_apt()
    if not KEYRING.is_file():
        raise IndexUnavailableError(f"{KEYRING} is not here: install the package debian-archive-keyring")
    for name in ("lists/partial", "empty"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n", encoding="utf-8")
    configuration = folder / "apt.conf"
    configuration.write_text(_configuration(folder.absolute()), encoding="utf-8")
    done = subprocess.run(
        ["apt-get", "--quiet", "--error-on=any", "update"],
        env={**os.environ, "APT_CONFIG": str(configuration.absolute()), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise IndexUnavailableError(f"apt-get update failed: {' '.join(done.stderr.split()) or done.stdout.strip()}")


def _configuration(folder: Path) -> str:
    """An apt.conf that keeps apt within `folder`; of the machine's own it keeps how mirrors are reached, no more."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    network = [s for s in dump.splitlines() if s.startswith("Acquire::") and not s.startswith(_OWN_SETTINGS)]
    own = {
        "Dir": f"{folder}/",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": f"{folder}/empty/",
        "Dir::Etc::sourcelist": f"{folder}/sources.list",
        "Dir::Etc::sourceparts": f"{folder}/empty/",
        "Dir::State": f"{folder}/",
        "Dir::State::lists": f"{folder}/lists/",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": f"{folder}/",
        "Dir::Cache::pkgcache": "",  # parsed lists: nobody reads them again
        "Dir::Cache::srcpkgcache": "",
        "Dir::Bin::methods": "/usr/lib/apt/methods",
        "APT::Architecture": ARCHITECTURE,
        "APT::Sandbox::User": "root",  # no change of user: another could not write here, and root is not needed
        "Acquire::GzipIndexes": "false",
    }
    lines = [*network, *(f'{key} "{value}";' for key, value in own.items())]
    lines.append("APT::Architectures { " + f'"{ARCHITECTURE}"; ' + "};")
    lines.append("Acquire::Languages { " + " ".join(f'"{language}";' for language in LANGUAGES) + " };")
    return "\n".join(lines) + "\n"


def read_packages(folder: Path) -> list[Package]:
    """The packages of the fetched index, by name, with the descriptions that each language has of them.

    Raises:
        IndexUnavailableError: the lists that `fetch` brings are not there.
    """
    lists = folder / "lists"
    descriptions = {
        language: {
            stanza["Description-md5"]: stanza[f"Description-{language}"]
            for stanza in read_stanzas(_the_list(lists, f"Translation-{language}"))
        }
        for language in LANGUAGES
    }
    packages = {}
    for stanza in read_stanzas(_the_list(lists, "Packages")):
        name, key = stanza["Package"], stanza["Description-md5"]
        packages[name] = Package(
            name=name,
            source=stanza.get("Source", name).split()[0],  # a version may stand behind it
            section=stanza["Section"],
            descriptions={language: texts[key] for language, texts in descriptions.items() if key in texts},
        )
    return [packages[name] for name in sorted(packages)]


def _the_list(lists: Path, ending: str) -> Path:
    found = sorted(lists.glob(f"*_{ending}"))
    if len(found) != 1:
        raise IndexUnavailableError(
            f"{lists} holds {len(found)} lists called {ending}: remove the folder and try again"
        )
    return found[0]


def read_stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The stanzas of a control file, each a mapping of field to value; lines of a value keep their indentation."""
    stanza: dict[str, str] = {}
    key = ""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            line = line.rstrip("\n")
            if not line:
                if stanza:
                    yield stanza
                stanza = {}
            elif line[0] in " \t":
                stanza[key] += "\n" + line
            else:
                key, _, value = line.partition(":")
                stanza[key] = value.strip()
    if stanza:
        yield stanza
