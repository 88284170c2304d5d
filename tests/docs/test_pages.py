"""The parts of the pages that are made from the source, and that a drift is seen."""

from pathlib import Path

import pytest

from docs import drawings, reference
from docs.import_graph import depths, without_detours
from docs.marked import rewritten
from nash.recipes.recipe import DistillationRecipe, OptimizationRecipe, PruneRecipe, PruningRecipe
from server.engine.interface.config import SETTINGS
from server.engine.interface.parameters import DECLARATIONS


def test_what_stands_between_marks_is_made_anew() -> None:
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n"
    assert rewritten(text, {"x": lambda: "new\n"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="there are no lines <!-- y:begin -->"):
        rewritten(text, {"y": lambda: ""})


def test_the_reference_has_every_key_with_what_it_does() -> None:
    for kind in (PruneRecipe, PruningRecipe, OptimizationRecipe, DistillationRecipe):
        rows = {line.split("`")[1]: line for line in reference.recipe_table(kind).splitlines()[2:]}
        for name, field in kind.model_fields.items():
            if name in rows:
                assert field.description, f"{kind.__name__}.{name} is not explained"
                assert " ".join(field.description.split()) in rows[name]
        assert rows
    assert "number from 0 below 1" in reference.recipe_table(PruningRecipe)
    assert '`"adamw"`, `"muon"`' in reference.recipe_table(OptimizationRecipe)


def test_the_reference_has_every_parameter_and_every_setting() -> None:
    page = reference.PAGES["docs/parameters.md"]["parameters"]()
    for name, declared in DECLARATIONS.items():
        assert (f"| `{name}` |" in page) == declared.in_requests
        assert declared.about or not declared.in_requests, f"{name} is not explained"
    assert all(f"| `{key}` |" in reference.model_keys_table() for key in SETTINGS)
    assert "| `--max-queue` | `NASH_SERVER_MAX_QUEUE` | `2048` |" in reference.settings_table()


def test_a_drawing_that_is_out_of_date_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawings, "ROOT", tmp_path)
    monkeypatch.setattr(drawings, "drawings", lambda: {tmp_path / "a.svg": "new"})
    assert drawings.main(["--check"]) == 1
    assert drawings.main([]) == 0
    assert drawings.main(["--check"]) == 0
    (tmp_path / "a.svg").write_text("old")
    assert drawings.main(["--check"]) == 1
    assert capsys.readouterr().out.count("a.svg does not show what the imports say") == 2


def test_detours_and_depths() -> None:
    graph = {"a": frozenset({"b", "c"}), "b": frozenset({"c"}), "c": frozenset[str]()}
    assert without_detours(graph)["a"] == {"b"}
    assert depths(graph) == {"a": 2, "b": 1, "c": 0}
