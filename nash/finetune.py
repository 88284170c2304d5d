"""`nash finetune`: train a dense model from nothing, or fine-tune one, by a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from nash.data import TokenizedPairs, read_rows
from nash.models import DTYPES, load_dense, load_tokenizer, new_t5, save_model
from nash.progress import TrainingProgress
from nash.recipe import FinetuneRecipe
from nash.run_folder import RunFolder
from nash.training import FinetuneTrainer, train


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """Where the trained model is, and what training logged."""

    folder: Path
    log: list[dict[str, float]]


def finetune(recipe: FinetuneRecipe, start: Path | None, out: Path, console: Console) -> Finetuned:
    """Train, or go on with training, in the run folder `out`; `start` is the directory of the recipe's model.

    Raises:
        RequestError: data, tokenizer or start model cannot be used.
    """
    run = RunFolder(out, recipe.model_dump(mode="json"))
    folder = out / "model"
    log = run.read_json("training_log.json")
    if log is not None:
        return Finetuned(folder=folder, log=log)

    tokenizer_folder = start or recipe.tokenizer
    assert tokenizer_folder is not None  # the recipe has one or the other
    tokenizer = load_tokenizer(tokenizer_folder)
    pairs = TokenizedPairs(
        read_rows(recipe.data.train),
        tokenizer,
        max_source_tokens=recipe.data.max_source_tokens,
        max_target_tokens=recipe.data.max_target_tokens,
    )
    if pairs.cut:
        console.print(f"{pairs.cut} training texts are longer than the limits and were cut")
    set_seed(recipe.seed)
    model: Any
    if start is not None:
        model = load_dense(start)
    else:
        assert recipe.shape is not None
        model = new_t5(recipe.shape, tokenizer, recipe.data.max_target_tokens)
    progress = TrainingProgress("fine-tune", console)
    trainer = FinetuneTrainer(
        model,
        pairs,
        recipe.training,
        output_dir=out / "checkpoints",
        seed=recipe.seed,
        callbacks=[progress],
    )
    try:
        log = train(trainer)
    finally:
        progress.close()
    save_model(model, tokenizer_folder, folder, DTYPES[recipe.save_dtype])
    run.write_json("training_log.json", log)
    return Finetuned(folder=folder, log=log)
