"""The command line. Each command imports what it needs when it runs, so that `nash --help` is instant."""

import sys
import traceback

import typer

from model_store.errors import InvalidRequestError, ModelStoreError
from nash import ranks
from nash.cli import bench, demo, evaluate, export, finetune, info, init, loadtest, models, prune, serve, sweep
from nash.errors import NashError, RequestError
from server.engine.errors import EngineError

INTERRUPTED = 130  # as shells count SIGINT

app = typer.Typer(
    name="nash",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune encoder-decoder language models and serve them beside their dense originals.",
)
app.command("init")(init.command)
app.command("finetune")(finetune.command)
app.command("prune")(prune.command)
app.command("sweep")(sweep.command)
app.command("evaluate")(evaluate.command)
app.command("export")(export.command)
app.command("bench")(bench.command)
app.command("serve")(serve.command)
app.command("info")(info.command)
app.command("loadtest", context_settings=loadtest.PASS_EVERYTHING)(loadtest.command)
app.command("demo")(demo.command)
app.add_typer(models.app, name="models", help="Publish, list, tag and verify models in the store.")


def _say_version(asked: bool) -> None:
    if asked:
        print(f"nash {info.installed('nash') or 'source'}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_say_version, help="Print the version."),
) -> None:
    """What `main` itself looks at is declared here, for the help."""


def main() -> None:
    """Run the command line: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    debug = "--debug" in sys.argv
    try:
        app()
    except (NashError, ModelStoreError, EngineError) as error:
        if debug:
            traceback.print_exc()
        wrong = isinstance(error, RequestError | InvalidRequestError | EngineError)
        if ranks.first() or not wrong:  # what is wrong with a request, the first process says for all
            print(f"error: {_process()}{error}", file=sys.stderr)
        sys.exit(2 if wrong else 1)
    except OSError as error:  # a full disk, a folder without permission: no class of ours describes it better
        if debug:
            traceback.print_exc()
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("interrupted: nothing is left half done, and the same command resumes the work", file=sys.stderr)
        raise
    except Exception as error:  # noqa: BLE001  an unforeseen error also gets one line
        if debug:
            traceback.print_exc()
        print(f"error: {_process()}{_unforeseen(error)}", file=sys.stderr)
        sys.exit(1)


def _process() -> str:
    return "" if ranks.count() == 1 else f"process {ranks.number()} of {ranks.count()}: "


def _unforeseen(error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    # PyTorch reports a lack of host memory by this text, and a lack of GPU memory by a class of its own.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in reason:
        return f"not enough memory ({reason}): lower the batch size or the lengths"
    return f"{type(error).__name__}: {reason} (this is a bug in nash; `nash --debug` before the command shows where)"
