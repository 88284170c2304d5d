"""`nash` run inside the test's own process: torch is imported once, and coverage sees it."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from nash.cli.main import main

PROGRAM = "import sys; sys.argv[0] = 'nash'; from nash.cli.main import main; main()"  # for a process of its own


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    code: object
    out: str
    err: str

    def document(self) -> Any:
        """The one JSON document of a command that succeeded."""
        assert self.code == 0, self.err
        assert self.out.isascii()
        return json.loads(self.out)


def nash(*arguments: object) -> Outcome:
    """Run the command line as the shell would."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with patch.object(sys, "argv", ["nash", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())
