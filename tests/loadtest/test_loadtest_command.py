"""The command line's errors, and what each process imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.errors import UsageError
from loadtest.plan import parse_duration_s

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    file = tmp_path / "w.jsonl"
    file.write_text('{"source": "a"}\n')
    return file


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2m", 120), ("1h", 3600), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s("--duration", text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1d", "1e3", "9999h", "nan", "2 m 3", "\u0663s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write 90, 90s, 2m or 1h"):
        parse_duration_s("--duration", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--users", "4", "--rate", "10"], "--users and --rate cannot be combined"),
        (["--users", "0"], "--users 0 is out of range"),
        (["--rate", "0"], "--rate 0 is out of range"),
        (["--rate", "inf"], "--rate inf is out of range"),
        (["--rate", "nan"], "--rate nan is out of range"),
        (["--seed", "-1"], "--seed -1 is out of range: give 0 or more"),
        (["--duration", "0.5"], "--duration 0.5 is too short"),
        (["--warmup", "soon"], "--warmup 'soon' is not a duration"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0 is out of range"),
        (["--host", "localhost"], "host 'localhost' is not an address"),
    ],
)
def test_wrong_options_end_with_2_and_one_line(
    options: list[str],
    message: str,
    workload: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loadtest.command import run as run_command

    monkeypatch.setattr(sys, "argv", ["loadtest", "--workload", str(workload), *options])
    with pytest.raises(SystemExit) as ended:
        run_command()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_no_server_is_1_and_leaves_no_folder(workload: Path, tmp_path: Path) -> None:
    done = run("--workload", workload, "--host", NOWHERE, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert f"no server answers at {NOWHERE}" in done.stderr
    assert "start one with `nash serve`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_bad_rows_and_used_folders_come_before_the_server(workload: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"source": "a"}\n{}\n')
    bad = run("--workload", tmp_path / "bad.jsonl", "--host", NOWHERE)
    assert (bad.returncode, "bad.jsonl, line 2: key 'source' is missing" in bad.stderr) == (2, True)
    used = run("--workload", workload, "--host", NOWHERE, "--out", tmp_path)
    assert (used.returncode, "is in use: give a folder that is new or empty" in used.stderr) == (2, True)


def test_nash_loadtest_is_the_same_command_and_nash_stays_light() -> None:
    program = """
import os, signal, sys
sys.argv = ["nash", "loadtest", "--rate", "3", "--help"]
def execv(path, arguments):
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGINT}
    print(arguments[1:], [name for name in ("gevent", "locust", "matplotlib", "numpy") if name in sys.modules])
    sys.exit(0)
os.execv = execv
from nash.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['-m', 'loadtest', '--rate', '3', '--help'] []", done.stderr


@pytest.mark.parametrize("moment", ["before", "while"])
def test_an_interrupt_of_the_start_is_130_without_a_word(moment: str) -> None:
    """Held back by `nash loadtest` before Python is there, or while packages are imported."""
    program = f"""
import os, signal, sys
from importlib.abc import MetaPathFinder
class Interrupting(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "loadtest.command":
            os.kill(os.getpid(), signal.SIGINT)
if "{moment}" == "before":
    signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT}})
    os.kill(os.getpid(), signal.SIGINT)
else:
    sys.meta_path.insert(0, Interrupting())
from loadtest.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_help_names_every_option() -> None:
    done = run("--help", COLUMNS="200")
    assert done.returncode == 0
    for option in ("--host", "--model", "--workload", "--users", "--rate", "--duration", "--warmup", "--seed", "--out"):
        assert option in done.stdout
    assert "NASH_API_KEY" in done.stdout


def test_missing_packages_are_one_line_with_the_remedy() -> None:
    program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("locust", "matplotlib") else find(name)
from loadtest.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: locust, matplotlib not installed: run pip install ")
    assert done.stderr.count("\n") == 1


def test_the_locustfile_needs_only_locust() -> None:
    """It also runs in an image that has nothing else."""
    program = """
import sys
for name in ("numpy", "matplotlib", "typer", "rich", "pydantic", "fastapi", "torch", "nash", "server", "model_store"):
    sys.modules[name] = None  # importing it raises ImportError
import loadtest.locustfile
ours = ("loadtest.results.figures", "loadtest.report.report", "loadtest.run")
print("imported", [name for name in ours if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported []", done.stderr
