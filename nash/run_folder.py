"""The folder of one run: what is done stays done, so an interrupted run goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

from nash.errors import RequestError


class RunFolder:
    """`--out`: holds the run's settings, the digests of its inputs, its phases' checkpoints and results.

    Raises:
        RequestError: the folder belongs to a run with other settings, or its inputs have changed since.
    """

    def __init__(self, path: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._bind("settings", settings)
        self._bind("inputs", inputs)

    def _bind(self, kind: str, values: dict[str, Any]) -> None:
        """Going on under other settings, or on other data, would publish a model that is neither run's."""
        known = self.read_json(f"{kind}.json")
        if known is None:
            self.write_json(f"{kind}.json", values)
        elif known != values:
            differing = sorted(k for k in {*known, *values} if known.get(k) != values.get(k))
            raise RequestError(
                f"{self.path} holds a run with other {kind} ({', '.join(differing)} differ): "
                "choose another --out, or remove the folder to start anew"
            )

    def read_json(self, name: str) -> Any:
        """The content of a result that was written to its end, or None."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        """Write a result whole or not at all: a reader takes its presence for its being finished."""
        temporary = self.path / f".{name}.partial"
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path / name)
