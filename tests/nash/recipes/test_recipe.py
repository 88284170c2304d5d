"""Recipes: every key is known, every path is found from the recipe, every error names the key."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from nash.errors import RequestError
from nash.recipes.recipe import FinetuneRecipe, PruneRecipe, build_recipe, read_recipe

PRUNE = """
model = "g2p@dense"
name = "g2p"
[data]
train = "data/train.jsonl"
validation = "data/validation.jsonl"
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(text: str) -> Path:
        path = tmp_path / "prune.toml"
        path.write_text(text)
        return path

    return write_recipe


def refusal(path: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        read_recipe(PruneRecipe, path, overrides)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) <= 2
    return message


def test_defaults_and_paths(write: Any, tmp_path: Path) -> None:
    recipe = read_recipe(PruneRecipe, write(PRUNE))
    assert (recipe.model, recipe.name, recipe.alias, recipe.seed) == ("g2p@dense", "g2p", "pruned", 0)
    assert recipe.data.train == tmp_path / "data/train.jsonl"
    assert recipe.data.test is None
    assert recipe.pruning.encoder_sparsity == 0.3
    assert recipe.distillation.temperature == 2.0


@pytest.mark.parametrize(("model", "found"), [("./m", "m"), ("../m", "../m"), ("a/b", "a/b"), ("/abs/m", "/abs/m")])
def test_a_models_path_is_relative_to_the_recipe(write: Any, tmp_path: Path, model: str, found: str) -> None:
    recipe = read_recipe(PruneRecipe, write(PRUNE.replace("g2p@dense", model)))
    assert Path(recipe.model) == tmp_path / found
    assert Path(recipe.model).is_absolute()


def test_absolute_data_paths_stay(write: Any) -> None:
    recipe = read_recipe(PruneRecipe, write(PRUNE.replace("data/train.jsonl", "/rows.jsonl")))
    assert recipe.data.train == Path("/rows.jsonl")


def test_sections(write: Any) -> None:
    text = PRUNE + "[pruning]\nencoder_sparsity = 0\ndecoder_layers = [0, 2]\n[prune_training]\nepochs = 2\n"
    recipe = read_recipe(PruneRecipe, write(text))
    assert recipe.pruning.encoder_sparsity == 0.0
    assert recipe.pruning.decoder_layers == [0, 2]
    assert recipe.prune_training.epochs == 2.0
    assert recipe.final_training.epochs == 1.0


@pytest.mark.parametrize(
    ("text", "key", "known"),
    [
        ("sped = 3\n" + PRUNE, "'sped'", "prune_training"),
        (PRUNE + "tset = 'x'\n", "'data.tset'", "max_source_tokens"),
        (PRUNE + "[pruning]\nsparsity = 0.3\n", "'pruning.sparsity'", "encoder_sparsity"),
        (PRUNE + "[purning]\nencoder_sparsity = 0.3\n", "'purning'", "pruning"),
    ],
)
def test_an_unknown_key_is_named_with_the_known_ones(write: Any, text: str, key: str, known: str) -> None:
    message = refusal(write(text))
    assert f"unknown key {key}" in message
    assert known in message.split("known here: ")[1]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("pruning", 'encoder_sparsity = "0.3"'),
        ("pruning", "encoder_sparsity = 1.0"),
        ("pruning", "encoder_sparsity = -0.1"),
        ("pruning", "encoder_sparsity = nan"),
        ("pruning", "encoder_sparsity = true"),
        ("pruning", 'layer_selection = "best"'),
        ("pruning", "gate_heads = 1"),
        ("pruning", "decoder_layers = 2.5"),
        ("prune_training", "max_steps = 0"),
        ("prune_training", "batch_size = 1.5"),
        ("prune_training", "learning_rate = inf"),
        ("prune_training", 'optimizer = "sgd"'),
        ("distillation", "temperature = 0"),
        ("prune_training", "batch_size = 10000000000"),
        ("prune_training", "gradient_accumulation = 99999999999999999999"),
        ("prune_training", "learning_rate = 1e+300"),
        ("pruning", "gate_learning_rate = 1e+300"),
    ],
)
def test_a_wrong_value_is_named(write: Any, section: str, line: str) -> None:
    key, value = line.split(" = ")
    message = refusal(write(f"{PRUNE}[{section}]\n{line}\n"))
    assert f"{section}.{key}" in message
    assert value.strip('"').lower() in message.lower()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("seed = 4294967296", "seed = 4294967296"),  # NumPy's generators take 32 bits
        ("[data]\nmax_source_tokens = 9223372036854775807", "data.max_source_tokens = 9223372036854775807"),
        ('[data]\ntrain = "a\\u0000b"', "a path cannot contain a NUL"),
    ],
)
def test_what_the_libraries_cannot_count_with_is_refused(write: Any, line: str, says: str) -> None:
    assert says in refusal(write(f'model = "./m"\nname = "n"\n{line}\n'))


def test_missing_keys_are_named_together(write: Any) -> None:
    message = refusal(write('name = "g2p"\n[data]\ntrain = "t.jsonl"\n'))
    assert "key 'model' is missing" in message
    assert "key 'data.validation' is missing" in message


def test_files_that_are_no_recipe(write: Any, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "absent.toml")
    assert "not valid TOML" in refusal(write("name = "))
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "\xff"')
    assert "not valid TOML" in refusal(path)


@pytest.mark.parametrize("text", ["seed = " + "9" * 5000, "seed = " + "[" * 5000])
def test_what_toml_cannot_be_parsed_for_its_size(write: Any, text: str) -> None:
    assert "is not valid TOML" in refusal(write(text))


def test_overrides_win(write: Any) -> None:
    path = write(PRUNE + "[pruning]\nencoder_sparsity = 0.5\ndecoder_layers = 3\n")
    overrides = {"pruning.encoder_sparsity": 0.1, "seed": 7, "final_training.max_steps": 4, "data.test": "/t.jsonl"}
    recipe = read_recipe(PruneRecipe, path, overrides)
    assert recipe.pruning.encoder_sparsity == 0.1
    assert recipe.pruning.decoder_layers == 3
    assert (recipe.seed, recipe.final_training.max_steps, recipe.data.test) == (7, 4, Path("/t.jsonl"))
    assert "pruning.encoder_sparsity = 2.0" in refusal(path, {"pruning.encoder_sparsity": 2.0})


def test_a_speed_stands_in_for_a_shape(write: Any) -> None:
    shaped = PRUNE + "[pruning]\ndecoder_layers = 2\nencoder_sparsity = 0.4\nrepair = true\n"
    asked = read_recipe(PruneRecipe, write(shaped), {"pruning.speedup": 2.5}).pruning
    assert (asked.speedup, asked.decoder_layers, asked.repair) == (2.5, None, True)
    assert read_recipe(PruneRecipe, write(PRUNE + "[pruning]\nspeedup = 3\n")).pruning.speedup == 3.0
    both = refusal(write(shaped + "speedup = 2.5\n"))
    assert "pruning.speedup chooses the shape: leave decoder_layers and encoder_sparsity out" in both
    off = "gate_heads = false\ngate_units = false\n"
    for gates in (off[: off.index("\n")], off[off.index("\n") :], off + "gate_sublayers = true"):
        assert "plans to cut heads and units alike" in refusal(write(PRUNE + f"[pruning]\nspeedup = 3\n{gates}\n"))
    assert "leave gated_stacks at 'encoder'" in refusal(
        write(PRUNE + '[pruning]\nspeedup = 3\ngated_stacks = "both"\n')
    )
    assert "cuts the hidden states of both stacks" in refusal(write(PRUNE + "[pruning]\ngate_hidden = true\n"))
    assert "leave encoder_sparsity out" in refusal(
        write(PRUNE + "[pruning]\nspeedup = 3\n"), {"pruning.encoder_sparsity": 0.1}
    )


def test_the_workload(write: Any) -> None:
    workload = read_recipe(
        PruneRecipe, write(PRUNE + '[workload]\nbatch = 4\ndtype = "int8"\nnew_tokens = 9\n')
    ).workload
    assert (workload.batch, workload.dtype, workload.new_tokens) == (4, "int8", 9)
    assert workload.source_tokens is None
    assert "workload.batch = 0" in refusal(write(PRUNE + "[workload]\nbatch = 0\n"))


def test_an_override_into_what_is_no_section(write: Any) -> None:
    assert "pruning = 3" in refusal(write("pruning = 3\n" + PRUNE), {"pruning.encoder_sparsity": 0.1})


def test_a_recipe_of_overrides_alone() -> None:
    overrides = {"model": "m@dense", "name": "m", "data.train": "/t", "data.validation": "/v"}
    assert build_recipe(PruneRecipe, {}, "given by flags", Path(), overrides).data.validation == Path("/v")
    del overrides["name"]
    with pytest.raises(RequestError, match="'name' is missing"):
        build_recipe(PruneRecipe, {}, "given by flags", Path(), overrides)


FINETUNE = '[data]\ntrain = "t"\nvalidation = "v"\n[training]\n'
SHAPE = "[shape]\nd_model = 8\nnum_heads = 2\nd_kv = 4\nd_ff = 8\nencoder_layers = 1\ndecoder_layers = 1\n"


def test_finetuning_starts_from_one_thing(write: Any) -> None:
    assert read_recipe(FinetuneRecipe, write('model = "m@dense"\n' + FINETUNE)).shape is None
    recipe = read_recipe(FinetuneRecipe, write('tokenizer = "tok"\n' + FINETUNE + SHAPE))
    assert recipe.shape is not None
    assert recipe.shape.d_model == 8
    for text in (FINETUNE, 'model = "m"\ntokenizer = "tok"\n' + FINETUNE + SHAPE, FINETUNE + SHAPE):
        with pytest.raises(RequestError, match="`shape`"):
            read_recipe(FinetuneRecipe, write(text))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('family = "marian"\nfeed_forward_proj = "gated-gelu"', "shape.feed_forward_proj = 'gated-gelu' is of family"),
        ('family = "marian"\nd_model = 9', "leave shape.d_kv out, and choose num_heads so that it divides d_model"),
        ('family = "marian"\nd_kv = 8', "heads share d_model = 8"),
        ("d_model = 1", "num_heads = 2 is more than d_model = 1: give shape.d_kv"),
    ],
)
def test_shapes_that_no_model_has(write: Any, lines: str, message: str) -> None:
    asked = tomllib.loads(lines)
    kept = [line for line in SHAPE.splitlines() if line.partition(" =")[0] not in (*asked, "d_kv")]
    with pytest.raises(RequestError, match=message):
        read_recipe(FinetuneRecipe, write('tokenizer = "tok"\n' + FINETUNE + "\n".join([*kept, lines])))


def test_layer_dropout_is_a_probability_below_one_and_off_by_default(write: Any) -> None:
    assert read_recipe(FinetuneRecipe, write('model = "m@dense"\n' + FINETUNE)).layer_dropout == 0
    assert (
        read_recipe(FinetuneRecipe, write('model = "m@dense"\nlayer_dropout = 0.6\n' + FINETUNE)).layer_dropout == 0.6
    )
    for wrong in ("1.0", "-0.1", '"half"'):
        with pytest.raises(RequestError, match="layer_dropout"):
            read_recipe(FinetuneRecipe, write(f'model = "m@dense"\nlayer_dropout = {wrong}\n' + FINETUNE))


def test_an_unknown_key_in_an_optional_section(write: Any) -> None:
    with pytest.raises(RequestError, match=r"unknown key 'shape.d_mdoel'; known here: .*d_model"):
        read_recipe(FinetuneRecipe, write('tokenizer = "tok"\n' + FINETUNE + SHAPE + "d_mdoel = 3\n"))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[3].glob("examples/*/*.toml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    prunes = "pruning" in tomllib.loads(path.read_text())
    recipe: PruneRecipe | FinetuneRecipe = (
        read_recipe(PruneRecipe, path) if prunes else read_recipe(FinetuneRecipe, path)
    )
    assert recipe.data.train.is_relative_to(path.parent / "data")
