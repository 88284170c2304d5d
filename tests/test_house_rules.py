"""Rules that hold across the packages; `make check` runs them by themselves."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from docs.import_graph import PACKAGES, ROOT, circle_in, module_graph, room_graph
from tests.source_rules import classes_of_one_name, functions_nobody_calls, parsed, settings_nobody_reads

FOLDERS = (*PACKAGES, "deploy", "docs", "tests", "benchmarks", "examples")
MOST_FILES = 12  # in a folder of the packages, unless its docstring says why

# What each part may import of ours. The longest matching prefix decides.
ALLOWED = {
    "model_store": {"model_store"},
    "model_store.model": {"model_store.model", "model_store.errors"},
    "server.engine": {"server.engine", "model_store"},
    "server.worker": {"server.worker", "server.messages", "server.telemetry.logs", "server.engine", "model_store"},
    "server.frontend": {
        *("server.frontend", "server.text", "server.messages", "server.settings", "server.errors", "model_store"),
        *("server.engine.interface", "server.engine.errors", "server.telemetry"),
        *("server.engine.capabilities", "server.engine.dtype_choice", "server.engine.machine.host_memory"),
    },
    "server": {"server", "model_store"},
    "nash": {"nash", "model_store", "server.engine"},
    "loadtest": {"loadtest"},
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def test_imports_run_one_way() -> None:
    wrong = []
    for name, targets in module_graph().items():
        prefix = max((p for p in ALLOWED if within(name, p)), key=len)
        wrong += [f"{name} imports {t}" for t in targets if not any(within(t, a) for a in ALLOWED[prefix])]
    assert not wrong


def test_no_imports_are_relative() -> None:
    relative = re.compile(r"^\s*from \.", re.MULTILINE)
    assert not [str(path) for path in sources(*FOLDERS) if relative.search(path.read_text(encoding="utf-8"))]


def test_rooms_import_in_no_circle() -> None:
    assert circle_in(room_graph(module_graph())) is None


def test_a_circle_is_found(tmp_path: Path) -> None:
    for name, text in {
        "nash/one/a.py": "from nash.two.b import B",
        "nash/two/b.py": "import nash.three",
        "nash/three.py": "def later():\n    from nash.one import a",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert circle_in(room_graph(module_graph(tmp_path))) == ["nash.one", "nash.two", "nash.three", "nash.one"]


def test_every_folder_begins_with_a_chapter_and_is_small() -> None:
    folders = {path.parent for path in sources(*PACKAGES)}
    for folder in folders:
        chapter = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert chapter, f"{folder} has no docstring"
        files = [each for each in folder.iterdir() if each.suffix in (".py", ".h", ".cpp") and each.stem != "__init__"]
        assert len(files) <= MOST_FILES or "more than twelve" in chapter, f"{folder} has {len(files)} files"


def test_names_say_something() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [str(p) for p in sources(*FOLDERS) if empty & {part.removesuffix(".py") for part in p.parts}]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("server.api.app", ["torch", "transformers", "opentelemetry.sdk", "server.telemetry.otel"]),
        ("server.__main__", ["torch", "transformers"]),
        ("model_store.store", ["torch", "transformers", "fastapi"]),
        ("nash.cli.serve", ["fastapi", "uvicorn", "torch"]),
        ("nash.cli.main", ["fastapi", "uvicorn"]),
    ],
)
def test_heavy_packages_stay_out(module: str, absent: list[str]) -> None:
    # The script is called nash, so that importing the package does not load transformers' side of it.
    program = f"import sys; sys.argv = ['nash']; import {module}; print([m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_needs_no_web_packages() -> None:
    program = """
import sys
for name in ("fastapi", "starlette", "uvicorn", "pydantic", "msgspec", "prometheus_client", "accelerate", "typer"):
    sys.modules[name] = None  # importing it raises ImportError
import server.engine.engine
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr


def settings_classes() -> dict[str, list[str]]:
    """By configuration class, the fields that it declares itself."""
    from loadtest import plan
    from nash.recipes import recipe, sweep
    from server import settings
    from server.engine.interface import config, parameters

    modules = (recipe, sweep, settings, config, parameters, plan)
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {
        each.__name__: [name for name in each.__annotations__ if not name.startswith(("_", "model_config"))]
        for each in classes
        if each.__module__ in {module.__name__ for module in modules}
        and (issubclass(each, BaseModel) or hasattr(each, "__dataclass_fields__"))
        and "__annotations__" in vars(each)
    }


def test_every_setting_is_read() -> None:
    assert not settings_nobody_reads(parsed(ROOT, PACKAGES), settings_classes())


def test_a_setting_that_nobody_reads_is_found(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "settings.py": "class Recipe:\n    used: int\n    dead: int\n    far: int\n"
            "class Run:\n    recipe: Recipe\n",
            "reader.py": "from settings import Run\ndef read(run: Run): return run.recipe.used\n",
            "other.py": "class Other:\n    dead: int\ndef read(other: Other): return other.dead + other.far\n",
        },
    )
    files = parsed(tmp_path, ["."])
    assert settings_nobody_reads(files, {"Recipe": ["used", "dead", "far"]}) == ["Recipe.dead", "Recipe.far"]


def test_class_names_are_declared_once() -> None:
    assert not classes_of_one_name(parsed(ROOT, PACKAGES))


def test_a_class_that_is_declared_twice_is_found(tmp_path: Path) -> None:
    plant(
        tmp_path, {"one.py": "class Row: pass\n", "two.py": "def f():\n    class Row: pass\n", "three.py": "Row = 1\n"}
    )
    found = classes_of_one_name(parsed(tmp_path, ["."]))
    assert {name: sorted(path.name for path in paths) for name, paths in found.items()} == {"Row": ["one.py", "two.py"]}


# Called by tests alone, each for a reason.
FOR_TESTS = {
    "app.py: create_app",  # over fakes; the server's own is made over a service that is there already
    "backend.py: hold_threads",  # a pool that does not change its mind can be compared with one thread
    "backend.py: active_threads",
    "native.py: metric_names",  # what a real Prometheus has scraped
    "import_graph.py: circle_in",  # the rule above
}


def test_every_function_is_called() -> None:
    declared = parsed(ROOT, (*PACKAGES, "deploy", "docs"))
    used = parsed(ROOT, (*PACKAGES, "deploy", "docs", "benchmarks", "examples"))
    assert set(functions_nobody_calls(declared, used)) == FOR_TESTS


def test_a_function_that_nobody_calls_is_found(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "one.py": "import ast\n"
            "def called(): pass\ndef dead(): pass\n@route\ndef decorated(): pass\n"
            "class Mine:\n    def method(self): pass\n    def gone(self): pass\n    def __len__(self): return 0\n"
            "class Theirs(ast.NodeVisitor):\n    def visit_Name(self, node): pass\n",
            "two.py": "from one import called\nMine().method()\n",
        },
    )
    files = parsed(tmp_path, ["."])
    assert functions_nobody_calls(files, files) == ["one.py: dead", "one.py: gone"]


def plant(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def test_nothing_opens_a_pickle_or_remote_code() -> None:
    forbidden = re.compile(r"torch\.load\(|pickle\.loads?\(|trust_remote_code\s*=\s*True")
    assert not [str(p) for p in sources(*PACKAGES, "benchmarks", "examples") if forbidden.search(p.read_text("utf-8"))]


def test_the_readme_names_make_targets_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE))
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets
    assert targets <= rules


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/architecture.md",
        "docs/families.md",
        "docs/log.md",
        "docs/operations.md",
        "docs/parameters.md",
        "docs/performance.md",
        "docs/recipes.md",
        "docs/serving.md",
        "docs/sweeps.md",
        "examples/debian/README.md",
        "examples/g2p/README.md",
    ],
)
def test_links_lead_to_files(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (path.parent / link).exists()]
