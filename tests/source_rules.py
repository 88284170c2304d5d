"""What the house rules look for in source. They are functions of files, so that a planted case can be shown to them."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(root: Path, folders: Iterable[str]) -> dict[Path, ast.Module]:
    """The syntax of every Python file of the folders."""
    paths = (path for folder in folders for path in sorted((root / folder).rglob("*.py")))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def classes_of_one_name(files: dict[Path, ast.Module]) -> dict[str, list[Path]]:
    """Class names that are declared more than once, with their files."""
    declared: dict[str, list[Path]] = defaultdict(list)
    for path, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                declared[node.name].append(path)
    return {name: paths for name, paths in declared.items() if len(paths) > 1}


def functions_nobody_calls(declared: dict[Path, ast.Module], used: dict[Path, ast.Module]) -> list[str]:
    """Functions and methods of `declared` whose name stands nowhere in `used` but where it is defined.

    Not asked of: what is decorated (a route, a command, a fixture of a library), special methods, and what overrides a
    method of a base class from elsewhere, which that one calls.
    """
    mentioned = set()
    for tree in used.values():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name):
                    mentioned.add(name)
                case ast.Constant(value=str(name)):  # getattr, and __all__
                    mentioned.add(name)
    ours = {node.name for tree in declared.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return [
        f"{path.name}: {function.name}"
        for path, tree in declared.items()
        for function, owner in _functions(tree)
        if function.name not in mentioned
        and not function.name.startswith("__")
        and not function.decorator_list
        and (owner is None or _all_ours(owner, ours))
    ]


def _functions(tree: ast.Module) -> Iterator[tuple[Definition, ast.ClassDef | None]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef):
            continue
        owner = node if isinstance(node, ast.ClassDef) else None
        for child in node.body:
            if isinstance(child, Definition):
                yield child, owner


def _all_ours(owner: ast.ClassDef, ours: set[str]) -> bool:
    names = {node.id for base in owner.bases for node in ast.walk(base) if isinstance(node, ast.Name)}
    return names <= ours | {"Protocol", "NamedTuple", "object"}


def settings_nobody_reads(files: dict[Path, ast.Module], settings: Mapping[str, Sequence[str]]) -> list[str]:
    """Fields of settings classes that are read in no file that has to do with their class.

    A file has to do with a class if it names it, or a class that holds one, directly or not: `run.recipe.data.train` is
    read where only PruneRun is named.
    """
    holders = _holders(files)
    unread = []
    for name, fields in settings.items():
        near = {name}
        while True:
            more = {holder for each in near for holder in holders.get(each, ())} - near
            if not more:
                break
            near |= more
        read: set[str] = set()
        for tree in files.values():
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
            if names & near:
                read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
        unread += [f"{name}.{field}" for field in fields if field not in read]
    return unread


def _holders(files: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """By class name, the classes that have one: in a field, or as a parameter of their constructor."""
    holders: dict[str, set[str]] = defaultdict(set)
    for tree in files.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            hints: list[ast.expr] = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
            for function in (each for each in node.body if isinstance(each, Definition)):
                if function.name == "__init__":
                    arguments = [*function.args.args, *function.args.kwonlyargs]
                    hints += [each.annotation for each in arguments if each.annotation is not None]
                elif function.returns is not None:
                    hints.append(function.returns)
            hints += node.bases
            for hint in hints:
                for part in ast.walk(hint):
                    if isinstance(part, ast.Name) and part.id != node.name:
                        holders[part.id].add(node.name)
    return holders
