"""Recipes: strictly parsed TOML files that say everything about a run.

A key that is not listed here is refused. Paths in a recipe are relative to the recipe's own folder.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from model_store.model.config_fields import MOST_LAYERS_OR_HEADS
from model_store.version.ref import looks_like_path
from nash.errors import RequestError
from nash.precision import Precision

HUB_PREFIX = "hub:"  # starts the name of a data set or a model on the hub

MetricKind = Literal[
    "phonemes", "exact", "summarization", "translation", "question_answering", "classification", "correlation"
]
TrackerKind = Literal["tensorboard", "wandb", "mlflow", "trackio"]
LayerSelection = Literal["uniform", "low", "high", "auto", "trained"]
# Far above any sensible value, and within what the libraries can handle.
MOST_COUNT, MOST_RATE, MOST_SEED, MOST_WORKERS = 1_000_000, 1e30, 2**32 - 1, 256
Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Rate = Annotated[float, Field(gt=0, le=MOST_RATE)]
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS_OR_HEADS)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]

MOST_SHARE = 2.0  # of the dense model's quality: a student may be better than its teacher, but hardly so much

# What a run may be resumed with, whatever it began with. The first leave no trace in the weights; the others say how
# often training is looked at. A run may also be extended: its epochs and its most steps may grow. And a step's rows may
# be split otherwise.
TRACELESS_KEYS = frozenset(
    {
        "checkpoint_steps",
        "checkpoint_minutes",
        "gradient_checkpointing",
        "min_quality",
        "publish_slower",
        "report_to",
        "workers",
    }
)
LOOK_KEYS = frozenset({"validation_steps", "validation_rows", "early_stopping"})
LENGTH_KEYS = frozenset({"epochs", "max_steps"})
BATCH_KEYS = frozenset({"batch_size", "gradient_accumulation"})  # their product is what a step takes

SHAPE_KEYS = ("decoder_layers", "encoder_sparsity")  # of [pruning]: `speedup` chooses these


class Section(BaseModel):
    """A table of a recipe: unknown keys, values of a wrong type, infinities and NaN are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _resolve_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """TOML has no path type: a string in a path field is resolved relative to the recipe's folder."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, str) and field.annotation in (Path, Path | None):
            if "\0" in value:
                raise ValueError("a path cannot contain a NUL character")
            if value.startswith(HUB_PREFIX):
                return Path(value)
            return (info.context or {}).get("folder", Path()) / value
        return value


class DataLayout(Section):
    """Which columns of the data hold what. `a.b` is the value b within column a."""

    source_column: str = "source"
    """The column of the source text."""
    target_columns: list[str] = Field(default=["target"], min_length=1)
    """The columns of the answers: a text, or a list of texts that are all right. Several columns hold several."""
    prefix: str = ""
    """Put before every source, as in `"summarize: "`."""

    @property
    def example(self) -> str:
        """What a row looks like, for error messages."""
        targets = ", ".join(f'"{column}": text or [text, ...]' for column in self.target_columns)
        return f'{{"{self.source_column}": text, {targets}}}'


class DataRecipe(DataLayout):
    """The data of each split, and length limits in tokens.

    A split is a file (JSONL, .csv, .tsv, .parquet), a folder saved by `datasets`, or
    `hub:OWNER/NAME[@REVISION][:CONFIG]:SPLIT`.
    """

    train: Path
    """What the model is trained on."""
    validation: Path
    """What training is watched on. It stands in for a test split that is not given."""
    test: Path | None = None
    """What the figures of the report are measured on."""
    test_rows: int | None = Field(default=None, ge=1)
    """Measure on the first rows only."""
    max_source_tokens: Count = 512
    """Longer sources lose their end."""
    max_target_tokens: Count = 256
    """Longer answers lose their end."""
    workers: int = Field(default=0, ge=0, le=MOST_WORKERS)
    """Processes that make batches while the model computes. Results do not depend on it."""

    @property
    def scored_split(self) -> str:
        """The name of the rows that the report's figures are of."""
        return "validation" if self.test is None else "test"


class OptimizationRecipe(Section):
    """One phase of training. A step is one update of the weights."""

    epochs: float = Field(default=1.0, ge=0)
    """Passes over the training rows. 0 skips the phase."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps, whatever `epochs` says."""
    batch_size: Count = 32
    """Rows in a forward pass."""
    gradient_accumulation: Count = 1
    """Forward passes in a step."""
    optimizer: Literal["adamw", "muon", "adafactor"] = "adamw"
    """`muon` updates hidden matrices with Muon and everything else with AdamW. `adafactor` needs almost no memory; its
    steps are shares of each matrix's own size, so a usual `learning_rate` is 0.01."""
    learning_rate: Rate = 1e-4
    """The highest that `schedule` reaches."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of each target's probability that the task loss spreads over the whole vocabulary."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, more time."""
    precision: Precision = "auto"
    """`auto` is bfloat16 where the hardware multiplies in it, else float32."""
    validation_steps: int = Field(default=0, ge=0)
    """Steps between validations. 0 validates after every epoch."""
    validation_rows: int = Field(default=200, ge=0)
    """How many of the validation rows are also answered, greedily, and scored with `metric`. 0: the loss alone."""
    keep_best: bool = False
    """Keep the weights of the best validation instead of the last ones: the best score, and of equal scores the lowest
    loss. While the sparsity still rises to its target, no validation counts."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many validations without a better one."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints. An interrupted run continues from the last one."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """A checkpoint is also due when the last one is this old."""


class ModelShape(Section):
    """The shape of a model that is trained from scratch. The vocabulary is the tokenizer's."""

    family: Literal["t5", "marian"] = "t5"
    """`t5`: norms before each sublayer, learned relative positions. `marian`: norms after it, sinusoidal positions."""
    d_model: Count
    """Width of the model."""
    num_heads: Count
    """Attention heads of a layer."""
    d_kv: Count | None = None
    """Width of a head. `d_model` shared among the heads if left out, as it must be for `marian`."""
    d_ff: Count
    """Feed-forward units of a layer."""
    encoder_layers: Layers
    """Layers of the encoder."""
    decoder_layers: Layers
    """Layers of the decoder."""
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    """`relu` as in T5 and Marian, `gated-gelu` as in T5 v1.1."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate while training."""

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.d_kv or self.d_model // self.num_heads

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.family == "marian" and self.feed_forward_proj != "relu":
            raise ValueError(f'shape.feed_forward_proj = {self.feed_forward_proj!r} is of family "t5" only: use "relu"')
        if self.family == "marian" and self.head_width * self.num_heads != self.d_model:
            raise ValueError(
                f"a marian's heads share d_model = {self.d_model} without a rest: leave shape.d_kv out, and choose "
                "num_heads so that it divides d_model"
            )
        if not self.head_width:
            raise ValueError(f"num_heads = {self.num_heads} is more than d_model = {self.d_model}: give shape.d_kv")
        return self


class FinetuneRecipe(Section):
    """`nash finetune`: start from `model`, or from scratch with `shape` and `tokenizer`."""

    model: str | None = None
    """The model to start from: a path, a REF in the store, or `hub:OWNER/NAME[@REVISION]`."""
    shape: ModelShape | None = None
    """Train a model of this shape from scratch."""
    tokenizer: Path | None = None
    """The folder of its tokenizer."""
    data: DataRecipe
    training: OptimizationRecipe
    layer_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Leave each decoder layer but the first out of an update with this probability (LayerDrop). The model then loses
    little when `nash prune` drops layers for good."""
    metric: MetricKind = "exact"
    """What the test rows are measured with."""
    device: str = "auto"
    """Where the model is trained and evaluated: `cpu`, `cuda`, `cuda:1`. `auto` is CUDA if there is one. A run may
    continue on another device."""
    seed: Seed = 0
    """Order of the rows, dropout, and the initial weights from scratch."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """The dtype of the weights in the saved folder."""
    report_to: list[TrackerKind] = []
    """Programs that follow the training. Each is an extra of this package."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.model is None) == (self.shape is None):
            raise ValueError("give either `model`, to start from one, or `shape`, to start from scratch")
        if (self.shape is None) != (self.tokenizer is None):
            raise ValueError("`shape` and `tokenizer` go together; a `model` brings its own tokenizer")
        if not self.training.epochs:
            raise ValueError("training.epochs = 0 trains nothing: set it above 0")
        return self


class PruningRecipe(Section):
    """What to cut. NASH gates the encoder's heads and feed-forward units and keeps some of the decoder's layers."""

    speedup: float | None = Field(default=None, gt=1)
    """Ask for a speed instead of a shape: how many times faster than the dense model under `[workload]`."""
    encoder_sparsity: float = Field(default=0.3, ge=0, lt=1)
    """The fraction to cut of the encoder's weights in heads and feed-forward units."""
    decoder_layers: int | list[int] | None = None
    """How many decoder layers to keep, or which ones, counted from 0. All if left out."""
    layer_selection: LayerSelection = "uniform"
    """Which layers a number means: spread evenly, the first, the last, those whose loss hurts least before training
    (`auto`), or those that are best after `search_steps` of it (`trained`)."""
    gate_heads: bool = True
    """Cut attention heads."""
    gate_units: bool = True
    """Cut feed-forward units."""
    gate_sublayers: bool = False
    """Cut whole sublayers, as CoFi does."""
    gate_hidden: bool = False
    """Cut dimensions of the hidden states, as CoFi does; with `gated_stacks = "both"`, which have them in common."""
    gated_stacks: Literal["encoder", "both"] = "encoder"
    """`both` cuts the decoder's heads and units too, as CoFi does. The sparsity is then that of both stacks."""
    structure: Literal["gates", "search"] = "gates"
    """What decides the cuts for a `speedup`: `gates` cuts the decoder's depth and trains gates on the encoder, as NASH
    does; `search` measures what every cut of both stacks costs in time and in quality, and chooses the best."""
    search_depths: Count = 3
    """How many numbers of decoder layers `search` trains for a short time before it decides between them."""
    search_steps: Count = 100
    """The steps of that training, and of each trial of `layer_selection = "trained"`."""
    repair: bool = False
    """Refit cut matrices by least squares before the final phase."""
    trim_vocab: bool = False
    """Keep only the tokens that the training rows need."""
    gate_learning_rate: Rate = 0.05
    """Learning rate of the gates."""
    multiplier_learning_rate: Rate = 0.05
    """Learning rate of the Lagrange multipliers that drive the sparsity to its target."""
    sparsity_warmup: float = Field(default=0.5, ge=0, le=1)
    """Share of the pruning phase in which the target rises from 0."""


class WorkloadRecipe(Section):
    """The requests that speed is measured on, and how the engine computes them."""

    batch: int = Field(default=1, ge=1)
    """Requests that arrive together."""
    source_tokens: int | None = Field(default=None, ge=1)
    """Length of each source. The data's if left out."""
    new_tokens: int | None = Field(default=None, ge=1)
    """Length of each answer. The data's if left out."""
    device: str | None = None
    """Where the models will be served, and where their speed is measured. The run's device if left out."""
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """`auto` is the fastest dtype whose quality is on record for the dense version, else float32."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the engine. Its own choice if left out."""


class QuantizationRecipe(Section):
    """What is added to the finished model."""

    int4: bool = False
    """Also calibrate its layers to four bits a weight, for `dtype=int4`."""


class DistillationRecipe(Section):
    """Weights of the losses. A weight of 0 switches its loss off."""

    task_weight: float = Field(default=1.0, ge=0)
    """Cross-entropy against the targets."""
    prediction_weight: float = Field(default=1.0, ge=0)
    """KL divergence from the teacher's predictions."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both predictions in that divergence."""
    encoder_hidden_weight: float = Field(default=3.0, ge=0)
    """Distance from the teacher's hidden states in the encoder."""
    decoder_hidden_weight: float = Field(default=3.0, ge=0)
    """The same in the decoder."""
    encoder_matching: Literal["dynamic", "same"] = "dynamic"
    """Compare an encoder layer of the teacher with the student's nearest one, as CoFi does, or with the same one."""
    sequence_level: bool = False
    """Train on the teacher's own answers instead of the data's targets."""
    answers: int = Field(default=1, ge=1, le=16)
    """How many answers to each row, the best of as many beams; 1 decodes as the teacher is served."""
    least_answer_quality: float | None = Field(default=None, gt=0, le=100)
    """Leave out answers whose own figure, the `metric` against the row's targets in percent, is below this."""
    keep_targets: bool = False
    """Train on the data's targets as well."""
    teacher_steps: int = Field(default=0, ge=0)
    """Train the teacher itself for this many steps first, as the final phase trains; 0 takes it as it is."""

    @model_validator(mode="after")
    def _answers_are_asked_for(self) -> Self:
        given = self.model_fields_set & {"answers", "least_answer_quality", "keep_targets"}
        if given and not self.sequence_level:
            raise ValueError(f"{' and '.join(sorted(given))} concern the teacher's answers: set sequence_level = true")
        return self

    @property
    def trains(self) -> bool:
        """Whether any loss is switched on."""
        return any((self.task_weight, self.prediction_weight, self.encoder_hidden_weight, self.decoder_hidden_weight))


class PruneRecipe(Section):
    """`nash prune`: from a fine-tuned model to a compact one in the store."""

    model: str
    """The fine-tuned model: a path, a REF in the store, or `hub:OWNER/NAME[@REVISION]`."""
    name: str
    """The name to publish under."""
    alias: str = "pruned"
    """The alias of the compact model. The dense one gets `dense`."""
    data: DataRecipe
    pruning: PruningRecipe = PruningRecipe()
    workload: WorkloadRecipe = WorkloadRecipe()
    distillation: DistillationRecipe = DistillationRecipe()
    prune_training: OptimizationRecipe = OptimizationRecipe()
    final_training: OptimizationRecipe = OptimizationRecipe()
    quantization: QuantizationRecipe = QuantizationRecipe()
    metric: MetricKind = "exact"
    """What the test rows are measured with."""
    device: str = "auto"
    """Where models are trained, evaluated and measured: `cpu`, `cuda`, `cuda:1`. `auto` is CUDA if there is one. A run
    may continue on another device."""
    seed: Seed = 0
    """Order of the rows, dropout and gates."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """The dtype of the compact weights in the store."""
    min_quality: float | None = Field(default=None, gt=0, le=MOST_SHARE)
    """Publish nothing unless the pruned model keeps this share of the dense one's quality, as in `0.97`."""
    publish_slower: bool = False
    """Also publish a model that is measured slower than the dense one."""
    report_to: list[TrackerKind] = []
    """Programs that follow the training. Each is an extra of this package."""

    @property
    def precisions(self) -> list[Precision]:
        """The precisions of the phases that are not skipped."""
        return [phase.precision for phase in (self.prune_training, self.final_training) if phase.epochs]

    @model_validator(mode="after")
    def _gates_are_trained(self) -> Self:
        if not self.prune_training.epochs and (self.pruning.encoder_sparsity or self.pruning.speedup):
            raise ValueError(
                "prune_training.epochs = 0 leaves the gates untrained: raise it, or set encoder_sparsity = 0"
            )
        return self

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = self.pruning.model_fields_set & set(SHAPE_KEYS)
        if self.pruning.speedup is not None and given:
            raise ValueError(
                f"pruning.speedup chooses the shape: leave {' and '.join(sorted(given))} out, or leave speedup out"
            )
        if self.pruning.structure == "search" and self.pruning.speedup is None:
            raise ValueError('pruning.structure = "search" searches for a speed: give pruning.speedup')
        if self.pruning.speedup is not None and self.pruning.gated_stacks == "both":
            raise ValueError(
                "pruning.speedup knows the cost of the encoder's widths only: leave gated_stacks at 'encoder'"
            )
        if self.pruning.gate_hidden and self.pruning.gated_stacks != "both":
            raise ValueError(
                "pruning.gate_hidden cuts the hidden states of both stacks: "
                'give pruning.gated_stacks = "both", or leave gate_hidden out'
            )
        heads, units, sublayers = (getattr(self.pruning, f"gate_{kind}") for kind in ("heads", "units", "sublayers"))
        if self.pruning.speedup is not None and (heads != units or (sublayers and not heads)):
            raise ValueError(
                "pruning.speedup plans to cut heads and units alike: switch gate_heads and gate_units "
                "both on, or all three kinds of gates off"
            )
        return self


def dotted(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a table and of the tables in it, by dotted keys."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


R = TypeVar("R", bound=Section)


def read_recipe(kind: type[R], path: Path, overrides: dict[str, Any] | None = None) -> R:
    """Read a recipe file; `overrides` are dotted keys from the command line that win over the file's.

    Raises:
        RequestError: the file cannot be read, is not TOML, or a key or a value in it is wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
        raise RequestError(f"recipe {path} is not valid TOML: {error}") from error
    model = table.get("model")
    if isinstance(model, str) and looks_like_path(model) and not model.startswith(HUB_PREFIX):
        table["model"] = str((path.parent / model).absolute())
    return build_recipe(kind, table, str(path), path.parent, overrides)


def build_recipe(
    kind: type[R], table: dict[str, Any], origin: str, folder: Path, overrides: dict[str, Any] | None = None
) -> R:
    """Make a recipe from parsed keys; `origin` names their source in errors.

    Raises:
        RequestError: a key is unknown or a value is wrong; the message names them all.
    """
    overrides = overrides or {}
    pruning = table.get("pruning")
    if "pruning.speedup" in overrides and isinstance(pruning, dict):
        for key in SHAPE_KEYS:  # the speed on the command line replaces the recipe's shape
            pruning.pop(key, None)
    for dotted, value in overrides.items():
        *sections, key = dotted.split(".")
        target: Any = table
        for section in sections:
            target = target.setdefault(section, {}) if isinstance(target, dict) else target
        if isinstance(target, dict):  # anything else in a section's place is refused below
            target[key] = value
    try:
        return kind.model_validate(table, context={"folder": folder})
    except ValidationError as error:
        raise RequestError(f"recipe {origin}: {_explain(kind, error)}") from error


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "recipe"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {place!r}; known here: {', '.join(_known_keys(kind, problem['loc'][:-1]))}")
        elif problem["type"] == "missing":
            lines.append(f"key {place!r} is missing")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            lines.append(reason if place == "recipe" else f"{place} = {problem['input']!r}: {reason}")
    return "; ".join(lines)


def _known_keys(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `place`, for the error message."""
    section = kind
    for part in place:
        if isinstance(part, int):  # a table in a list: its section is the list's
            continue
        annotation = section.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return sorted(section.model_fields)
