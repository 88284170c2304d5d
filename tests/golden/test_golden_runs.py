"""What training, pruning, evaluating, measuring and exporting say, and the losses of short runs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.golden import masks
from tests.golden.expected_files import Golden
from tests.golden.nash_process import Outcome, nash, nash_each, nash_each_forked
from tests.golden.tiny_folders import build_pruned
from tests.golden.tiny_task import write_task

LOSSES = 2e-3  # relative: training differs in its last bits, and step by step a little more
LENGTHS = ("--source-tokens", "6", "--new-tokens", "3", "--repeats", "1")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "prune": ("prune", "prune.toml", "--out", "pruned-run", "--store", "pruned-store"),
    "finetune": ("finetune", "tune.toml", "--out", "tuned-run", "--store", "tuned-store", "--name", "tuned"),
    "sweep": ("sweep", "sweep.toml", "--out", "swept-run", "--store", "swept-store"),
    "bench": ("bench", "t5@dense", "./cut", "--batch", "1", "--batch", "2", "--dtype", "float32", *LENGTHS),
    "evaluate": (
        *("evaluate", "t5@dense", "--data", ".", "--split", "test", "--metric", "translation"),
        *("--dtype", "float32", "--max-new-tokens", "12", "--record"),
    ),
    "export": ("export", "t5@pruned", "--out", "exported/as-it-is"),
    "export as a stock checkpoint": ("export", "./cut", "--format", "hf-dense", "--out", "exported/stock"),
}
FIGURES = (
    *(masks.times(f"*.{name}_ms") for name in ("encoder", "encode", "step", "total")),
    masks.times("*speedup*"),
    masks.times("*.tokens_per_s"),
    masks.machines("*.engine"),
    masks.sentences("*dtype_why"),
    masks.digests("*digest"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_task(tmp_path_factory.mktemp("runs"))
    build_pruned(folder / "dense", folder / "cut")
    models = {"dense": "dense", "pruned": "cut"}
    published = nash_each([["models", "publish", "t5", models[alias], "--alias", alias] for alias in models], folder)
    assert not any(each.code for each in published)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> Mapping[str, Outcome]:
    """All commands, run side by side."""
    found = nash_each_forked([[*command, "--json"] for command in COMMANDS.values()], folder)
    return dict(zip(COMMANDS, found, strict=True))


def test_prune(outcomes: Mapping[str, Outcome], folder: Path, golden: Golden) -> None:
    """Its document, and what the store then says of the result."""
    show = ("models", "show", "back@pruned", "--store", "pruned-store", "--json")
    found = {"printed": outcomes["prune"].document(), "shown": nash(*show, folder=folder).document()}
    measured = found["shown"].pop("measurements")  # which dtypes were tried depends on the machine
    assert [record["dtype"] for record in measured][:1] == ["float32"]
    assert {record["kind"] for record in measured} == {"quality"}
    golden.check(
        "runs/prune",
        found,
        *FIGURES,
        masks.trained("*.pruned.metrics.*"),
        masks.trained("shown.metrics.*"),
        masks.digests("shown.parent"),  # it names files that libraries wrote
        masks.digests("shown.files.sha256"),
        masks.sizes("shown.files.size"),
        masks.machines("shown.lineage.code_version"),
        masks.digests("shown.lineage.parent"),
        masks.moments("*.created_at"),
    )


def test_finetune(outcomes: Mapping[str, Outcome], golden: Golden) -> None:
    golden.check("runs/finetune", outcomes["finetune"].document(), *FIGURES, masks.trained("dense.metrics.*"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("finetune", "tuned-run/training_log.jsonl"),
        ("prune", "pruned-run/prune_log.jsonl"),
        ("prune", "pruned-run/final_log.jsonl"),
    ],
)
def test_losses(outcomes: Mapping[str, Outcome], folder: Path, golden: Golden, name: str, path: str) -> None:
    """What a run has logged, step by step."""
    assert outcomes[name].code == 0, outcomes[name].err
    entries = [json.loads(line) for line in (folder / path).read_text().splitlines()]
    curve = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert len(set(curve)) == len(curve) >= 20, "a loss after each step"
    golden.check(
        f"losses/{Path(path).stem}",
        entries,
        *(masks.times(f"eval_{name}") for name in ("runtime", "samples_per_second", "steps_per_second")),
        masks.trained("eval_*_error_rate"),
        relative=LOSSES,
        absolute=0.0,
    )


def test_sweep(outcomes: Mapping[str, Outcome], golden: Golden) -> None:
    """Which shapes are on the frontier is for the clock to say, so only what is said of one."""
    document = outcomes["sweep"].document()
    keys = {frozenset(shape) for shape in document["shapes"]}
    best = [] if document["best"] is None else [document["best"]]
    assert all(frozenset(shape) in keys for shape in [*document["frontier"], *best])
    document["frontier"] = document["best"] = "<shapes>"
    golden.check(
        "runs/sweep",
        document,
        *FIGURES,
        masks.times("busyness"),
        masks.trained("points.metrics.*"),
        masks.trained("shapes.metrics.*"),
        masks.trained("shapes.quality.*"),
    )


def test_bench(outcomes: Mapping[str, Outcome], golden: Golden) -> None:
    golden.check("runs/bench", {"rows": outcomes["bench"].document()}, *FIGURES)


def test_evaluate(outcomes: Mapping[str, Outcome], golden: Golden) -> None:
    golden.check("runs/evaluate", outcomes["evaluate"].document(), *FIGURES, masks.sentences("finding"))


def test_export(outcomes: Mapping[str, Outcome], folder: Path, golden: Golden) -> None:
    """As it is: the very files, and a card. As a stock checkpoint: our keys are gone, and zeros fill what was cut."""
    whole, stock = folder / "exported/as-it-is", folder / "exported/stock"
    assert outcomes["export"].document() == {"path": str(whole)}
    assert outcomes["export as a stock checkpoint"].document() == {"path": str(stock)}
    assert files_of(whole) == files_of(folder / "cut") | {"README.md": (whole / "README.md").read_bytes()}
    tensors = load_file(stock / "model.safetensors")
    golden.check(
        "runs/export",
        {
            "files": sorted(files_of(stock)),
            "config": json.loads((stock / "config.json").read_text()),
            "tensors": {
                name: [list(tensor.shape), hashlib.sha256(tensor.tobytes()).hexdigest()[:16]]
                for name, tensor in sorted(tensors.items())
            },
        },
        masks.machines("config.transformers_version"),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
