"""A sweep's recipe: which points it asks for, and what it refuses before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from nash.errors import RequestError
from nash.recipes.sweep import Point, read_sweep

PRUNE = """
model = "g2p@dense"
name = "g2p"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
[pruning]
decoder_layers = 3
encoder_sparsity = 0.2
[distillation]
temperature = 3.0
"""


def read(folder: Path, text: str, prune: str = PRUNE, **overrides: Any) -> list[Point]:
    (folder / "prune.toml").write_text(prune)
    (folder / "sweep.toml").write_text(f'recipe = "prune.toml"\n{text}')
    return read_sweep(folder / "sweep.toml", overrides)[1]


def refused(folder: Path, text: str, prune: str = PRUNE) -> str:
    with pytest.raises(RequestError) as caught:
        read(folder, text, prune)
    return str(caught.value)


def test_the_grid_of_every_seed(tmp_path: Path) -> None:
    points = read(tmp_path, "seeds = [0, 7]\ndecoder_layers = [1, 2]\nencoder_sparsity = [0.0, 0.35]")
    assert [p.id for p in points[:4]] == [f"nash-{s}-seed0" for s in ("d1-s0", "d1-s0.35", "d2-s0", "d2-s0.35")]
    assert [p.id for p in points[4:]] == [p.id.replace("seed0", "seed7") for p in points[:4]]
    recipe = points[7].recipe
    assert (recipe.pruning.decoder_layers, recipe.pruning.encoder_sparsity, recipe.seed) == (2, 0.35, 7)
    assert recipe.alias == points[7].id
    assert recipe.distillation.temperature == 3.0, "all else is the prune recipe's"
    assert recipe.data.train == tmp_path / "train.jsonl"


def test_without_shapes_the_prune_recipes_own_is_swept(tmp_path: Path) -> None:
    assert [p.id for p in read(tmp_path, "seeds = [0, 1]")] == ["nash-d3-s0.2-seed0", "nash-d3-s0.2-seed1"]
    assert [p.id for p in read(tmp_path, "decoder_layers = [1]")] == ["nash-d1-s0.2-seed0"]


def test_single_points_beside_the_grid_and_alone(tmp_path: Path) -> None:
    listed = "[[points]]\ndecoder_layers = [0, 5]\n[[points]]\nencoder_sparsity = 0.5\n"
    alone = [p.id for p in read(tmp_path, listed)]
    assert alone == ["nash-l0_5-s0.2-seed0", "nash-d3-s0.5-seed0"]
    assert [p.id for p in read(tmp_path, f"decoder_layers = [1]\n{listed}")] == ["nash-d1-s0.2-seed0", *alone]
    assert read(tmp_path, listed)[0].recipe.pruning.decoder_layers == [0, 5]


@pytest.mark.parametrize(
    "changes",
    ['"distillation.prediction_weight" = 0.0', "distillation.prediction_weight = 0.0"],
    ids=["dotted", "table"],
)
def test_methods_change_the_prune_recipe(tmp_path: Path, changes: str) -> None:
    text = f"""
decoder_layers = [1, 2]
[[methods]]
name = "NASH"
[[methods]]
name = "Task loss, alone"
decoder_layers = [6]
encoder_sparsity = [0.6]
[methods.set]
{changes}
"""
    points = read(tmp_path, text)
    assert [p.id for p in points] == ["nash-d1-s0.2-seed0", "nash-d2-s0.2-seed0", "task-loss-alone-d6-s0.6-seed0"]
    assert [p.method for p in points] == ["NASH", "NASH", "Task loss, alone"]
    assert [p.recipe.distillation.prediction_weight for p in points] == [1.0, 1.0, 0.0]
    assert {p.recipe.distillation.temperature for p in points} == {3.0}


def test_the_command_lines_word_wins(tmp_path: Path) -> None:
    read(tmp_path, 'publish = "none"')
    assert read_sweep(tmp_path / "sweep.toml", {"publish": "all"})[0].publish == "all"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = 0", "unknown key 'seed'; known here: control, decoder_layers, "),
        (
            "[[points]]\nlayers = 1",
            "unknown key 'points.0.layers'; known here: decoder_layers, encoder_sparsity",
        ),
        ("seeds = []", "seeds"),
        ("seeds = [0, 1, 0]", "point nash-d3-s0.2-seed0 is asked for twice"),
        ("decoder_layers = [3]\n[[points]]\nencoder_sparsity = 0.2", "nash-d3-s0.2-seed0 is asked for twice"),
        ("encoder_sparsity = [1.0]", "encoder_sparsity.0 = 1.0"),
        ('publish = "some"', "publish = 'some'"),
        ('[[methods]]\nname = "A"\nset.distil.temperature = 1.0', "a-d3-s0.2-seed0: recipe"),
        ('[[methods]]\nname = "A"\nset.distil.temperature = 1.0', "unknown key 'distil'"),
        (
            '[[methods]]\nname = "A"\nset.data.train = "more.jsonl"',
            "method 'A' sets 'data.train', which all points share",
        ),
        ('[[methods]]\nname = "A"\nset.seed = 4', "method 'A' sets 'seed', which the sweep sets"),
        ('[[methods]]\nname = "A"\nset.pruning.decoder_layers = 4', "'pruning.decoder_layers', which the sweep sets"),
        ('[[methods]]\nname = "?"', "no letter or digit"),
        ('[[methods]]\nname = "A b"\n[[methods]]\nname = "a-B"', "two methods are called 'a-b'"),
        (
            '[[methods]]\nname = "A"\n[[methods]]\nname = "B"',
            "the methods 'A' and 'B' do the same at the point b-d3-s0.2",
        ),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_a_prune_recipe_that_asks_for_a_speed(tmp_path: Path) -> None:
    fast = PRUNE.replace("decoder_layers = 3\nencoder_sparsity = 0.2", "speedup = 2.0")
    assert "pruning.speedup chooses a shape" in refused(tmp_path, "decoder_layers = [1]", fast)


def test_a_prune_recipe_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text('recipe = "absent.toml"')
    with pytest.raises(RequestError, match=r"absent\.toml cannot be read"):
        read_sweep(tmp_path / "sweep.toml")


def test_speeds_are_asked_for_in_place_of_shapes(tmp_path: Path) -> None:
    points = read(tmp_path, "speedup = [2.0, 3.5]")
    assert [p.id for p in points] == ["nash-x2-seed0", "nash-x3.5-seed0"]
    assert [p.recipe.pruning.speedup for p in points] == [2.0, 3.5]
    both = refused(tmp_path, "speedup = [2.0]\ndecoder_layers = [1]")
    assert "leave decoder_layers, encoder_sparsity and points out beside it" in both
    assert "speedup" in refused(tmp_path, "speedup = [1.0]")


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ("[prune_training]\nmax_steps = 30\n[final_training]\nmax_steps = 70", ("max_steps", 100)),
        ("[prune_training]\nepochs = 0\nmax_steps = 30\n[final_training]\nmax_steps = 70", ("max_steps", 70)),
        ("[prune_training]\nepochs = 1\n[final_training]\nepochs = 4.0", ("epochs", 5.0)),
    ],
)
def test_the_control_trains_as_long_as_the_others(tmp_path: Path, lengths: str, expected: tuple[str, float]) -> None:
    prune = PRUNE.replace("encoder_sparsity = 0.2", "encoder_sparsity = 0.0") + lengths
    *_, control = read(tmp_path, "control = true\ndecoder_layers = [1]", prune)
    assert (control.method, control.recipe.pruning.decoder_layers) == ("dense, trained on", None)
    assert control.recipe.pruning.encoder_sparsity == 0
    assert getattr(control.recipe.final_training, expected[0]) == expected[1]
    assert control.recipe.distillation.temperature == 3.0
