"""Where everything is inside a store. Pure: nothing here touches the disk.

store/
  tmp/<uuid>/                                 work in progress, garbage after a crash
  blobs/sha256/ab/<hex>                       write-once bytes: model files and manifests
  views/<manifest digest>/                    model directories of hard links to blobs
  models/<name>/versions/000007               names a manifest digest: the commit point
  models/<name>/aliases/<alias>/000012        {version, reason, at}; the highest generation wins
  models/<name>/tombstones/000003             version 3 was removed
  models/<name>/measurements/<digest>/<id>    write-once records of measurements of a version
"""

import re
from dataclasses import dataclass
from pathlib import Path

_NUMBER = re.compile(r"[0-9]{6,12}")


def number_name(number: int) -> str:
    """The file name of a version or of an alias generation: 7 is `000007`."""
    return f"{number:06d}"


def parse_number(name: str) -> int | None:
    """The inverse of `number_name`; None for a file that is not a numbered pointer."""
    if not _NUMBER.fullmatch(name) or number_name(int(name)) != name or int(name) == 0:
        return None
    return int(name)


@dataclass(frozen=True)
class Paths:
    """The paths below one store's root. Callers must check names, aliases and digests first."""

    root: Path

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def view(self, digest: str) -> Path:
        return self.root / "views" / digest

    def versions(self, name: str) -> Path:
        return self.models / name / "versions"

    def version(self, name: str, version: int) -> Path:
        return self.versions(name) / number_name(version)

    def aliases(self, name: str) -> Path:
        return self.models / name / "aliases"

    def alias(self, name: str, alias: str) -> Path:
        return self.aliases(name) / alias

    def tombstone(self, name: str, version: int) -> Path:
        return self.models / name / "tombstones" / number_name(version)

    def measurements(self, name: str, digest: str) -> Path:
        return self.models / name / "measurements" / digest
