"""The inputs of `nash prune`: read and checked before any training."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from model_store.find import FoundModel
from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from model_store.store import StoredVersion
from nash.checkpoints.proof import check_task
from nash.data.examples import TokenizedPairs
from nash.data.model_fit import check_lengths, check_tokens
from nash.data.rows import RowFile, TaskRow, read_rows
from nash.errors import RequestError
from nash.modeling.folders import load_tokenizer
from nash.preflight import asked_layers, check_dense, check_words
from nash.recipes.recipe import PruneRecipe, PruningRecipe
from nash.run.lineage import input_digests
from nash.structure.masking import GateKinds


@dataclass(frozen=True, kw_only=True)
class Task:
    """The inputs of a run: the dense model and the data."""

    inputs: dict[str, str]  # digests of the files read
    model: Model  # the dense one
    version: StoredVersion | None  # the dense model in the store; None while it is a folder outside
    origin: str | None  # hub:OWNER/NAME@COMMIT if the dense model is from the hub
    tokenizer: PreTrainedTokenizerBase
    train_rows: RowFile
    validation_rows: list[TaskRow]
    test_rows: list[TaskRow]

    @property
    def spec(self) -> ModelSpec:
        """The dense model's shape."""
        return self.model.spec


def prepare(recipe: PruneRecipe, found: FoundModel) -> Task:
    """Read the inputs of a run whose dense model is `found`, and check all of them before any training.

    Raises:
        RequestError: model, data or targets cannot be used.
    """
    data = recipe.data
    train_rows, validation_rows = RowFile(data.train, data), read_rows(data.validation, data)
    test_rows = validation_rows if data.test is None else read_rows(data.test, data)
    check_dense(found)
    model, spec = found.model, found.model.spec
    check_lengths(spec, data)
    # Checked now: after hours of training, an error would come too late.
    tokenizer = load_tokenizer(model.folder)
    check_task(model.folder, tokenizer, train_rows, validation_rows)
    check_tokens(TokenizedPairs.under(data, validation_rows, tokenizer), spec)
    task = Task(
        inputs=input_digests(data, found),
        model=model,
        version=found.version,
        origin=found.origin,
        tokenizer=tokenizer,
        train_rows=train_rows,
        validation_rows=validation_rows,
        test_rows=test_rows[: data.test_rows],
    )
    check_targets(recipe, task)
    return task


def check_targets(recipe: PruneRecipe, task: Task) -> None:
    """Check that a task can meet a recipe's targets. Runs that share model and data read them once.

    Raises:
        RequestError: the targets cannot be used.
    """
    check_words(recipe)
    if recipe.pruning.speedup is None:
        _check_reachable(recipe.pruning, task.spec)
    asked_layers(recipe, task.spec)


def _check_reachable(pruning: PruningRecipe, spec: ModelSpec) -> None:
    """Refuse a sparsity out of reach: hardening would cut parts that have no gate, in the order of the layers."""
    reachable = gate_kinds(pruning).reach(spec)
    if pruning.encoder_sparsity > reachable:
        raise RequestError(
            f"pruning.encoder_sparsity {pruning.encoder_sparsity} is out of reach: gate_heads, gate_units, "
            f"gate_sublayers and gate_hidden let no more than {reachable:.2f} of the prunable weights be cut"
        )


def gate_kinds(pruning: PruningRecipe) -> GateKinds:
    """The gates that the recipe asks for."""
    return GateKinds(
        heads=pruning.gate_heads,
        units=pruning.gate_units,
        sublayers=pruning.gate_sublayers,
        hidden=pruning.gate_hidden,
        stacks=pruning.gated_stacks,
    )
