"""Recipes: strictly parsed TOML files that say everything about a run.

A key that is not listed here is refused. Paths in a recipe are relative to the recipe's own folder.
"""

import tomllib
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

HUB_PREFIX = "hub:"  # starts a path that stands for a data set on the hub

MetricKind = Literal[
    "phonemes", "exact", "summarization", "translation", "question_answering", "classification", "correlation"
]
LayerSelection = Literal["uniform", "low", "high", "auto"]
# Far above any sensible value, and within what the libraries can handle.
MOST_COUNT, MOST_RATE, MOST_SEED = 1_000_000, 1e30, 2**32 - 1
Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Rate = Annotated[float, Field(gt=0, le=MOST_RATE)]
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS_OR_HEADS)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]

SHAPE_KEYS = ("decoder_layers", "encoder_sparsity")  # of [pruning]: `speedup` chooses these


class Section(BaseModel):
    """A table of a recipe: unknown keys, values of a wrong type, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _resolve_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """TOML has no path type: a string in a path field is resolved relative to the recipe's folder."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, str) and field.annotation in (Path, Path | None):
            if "\0" in value:
                raise ValueError("a path has no NUL character in it")
            if value.startswith(HUB_PREFIX):
                return Path(value)
            return (info.context or {}).get("folder", Path()) / value
        return value


class DataLayout(Section):
    """The columns that hold sources and targets. `a.b` is the value b within column a.

    A target is a text or a list of texts, all of them correct; several columns are several correct answers.
    """

    source_column: str = "source"
    target_columns: list[str] = Field(default=["target"], min_length=1)
    prefix: str = ""  # put before every source, such as "summarize: "

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
    validation: Path
    test: Path | None = None
    test_rows: int | None = Field(default=None, ge=1)  # evaluate only on this many rows, from the first
    max_source_tokens: Count = 512
    max_target_tokens: Count = 256


class OptimizationRecipe(Section):
    """One phase of training. A step is one update of the weights. With 0 epochs the phase is skipped.

    Precision "auto" is bfloat16 if the hardware has it, else float32.
    """

    epochs: float = Field(default=1.0, ge=0)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: Count = 32
    gradient_accumulation: Count = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Rate = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Precision = "auto"
    checkpoint_steps: int = Field(default=500, ge=1)


class T5Shape(Section):
    """The shape of a T5 that is trained from scratch. The vocabulary is the tokenizer's."""

    d_model: Count
    num_heads: Count
    d_kv: Count
    d_ff: Count
    encoder_layers: Layers
    decoder_layers: Layers
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    dropout: float = Field(default=0.1, ge=0, lt=1)


class FinetuneRecipe(Section):
    """`nash finetune`: start from `model` (a path or a reference), or from scratch with `shape` and `tokenizer`.

    With `layer_dropout`, each decoder layer except the first is skipped in an update with this probability, so that the
    model tolerates it when `nash prune` drops layers for good.
    """

    model: str | None = None
    shape: T5Shape | None = None
    tokenizer: Path | None = None
    data: DataRecipe
    training: OptimizationRecipe
    layer_dropout: float = Field(default=0.0, ge=0, lt=1)
    metric: MetricKind = "exact"
    seed: Seed = 0
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.model is None) == (self.shape is None):
            raise ValueError("give either `model`, to go on from one, or `shape`, to start from nothing")
        if (self.shape is None) != (self.tokenizer is None):
            raise ValueError("`shape` and `tokenizer` go together; a `model` brings its own tokenizer")
        if not self.training.epochs:
            raise ValueError("training.epochs = 0 trains nothing: give more")
        return self


class PruningRecipe(Section):
    """What to cut. Sparsity is the fraction cut from the encoder's weights in heads and feed-forward units.

    NASH puts gates on the encoder's heads and units. With `gated_stacks` "both" the decoder's are cut as well, and the
    sparsity is that of both stacks; with `gate_sublayers` too, this is CoFi. `repair` refits cut matrices before the
    final phase. `trim_vocab` keeps only the tokens that the training rows need.

    `speedup` requests a speed instead: how many times faster than the dense model under the recipe's workload.
    """

    speedup: float | None = Field(default=None, gt=1)
    encoder_sparsity: float = Field(default=0.3, ge=0, lt=1)
    decoder_layers: int | list[int] | None = None
    layer_selection: LayerSelection = "uniform"
    gate_heads: bool = True
    gate_units: bool = True
    gate_sublayers: bool = False
    gated_stacks: Literal["encoder", "both"] = "encoder"
    repair: bool = False
    trim_vocab: bool = False
    gate_learning_rate: Rate = 0.05
    multiplier_learning_rate: Rate = 0.05
    sparsity_warmup: float = Field(default=0.5, ge=0, le=1)  # share of the pruning phase


class WorkloadRecipe(Section):
    """The workload for which speed is requested and measured: requests that arrive together, and the engine's settings.

    Lengths that are not given come from the data. The dtype "auto" is the fastest one for which the store has a record
    that the dense version's quality holds, else float32.
    """

    batch: int = Field(default=1, ge=1)
    source_tokens: int | None = Field(default=None, ge=1)
    new_tokens: int | None = Field(default=None, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    threads: int | None = Field(default=None, ge=1)


class QuantizationRecipe(Section):
    """What to add to the finished model: with `int4`, its layers in four bits a weight, calibrated on the data."""

    int4: bool = False


class DistillationRecipe(Section):
    """Weights of the losses; a weight of zero switches its loss off.

    The teacher's encoder layers are compared with the student's nearest layers ("dynamic", as in CoFi) or with those of
    the same number ("same"). With `sequence_level` the targets are the teacher's own answers.
    """

    task_weight: float = Field(default=1.0, ge=0)
    prediction_weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    encoder_hidden_weight: float = Field(default=0.001, ge=0)
    decoder_hidden_weight: float = Field(default=0.001, ge=0)
    encoder_matching: Literal["dynamic", "same"] = "dynamic"
    sequence_level: bool = False

    @property
    def trains(self) -> bool:
        """Whether any loss is switched on."""
        return any((self.task_weight, self.prediction_weight, self.encoder_hidden_weight, self.decoder_hidden_weight))


class PruneRecipe(Section):
    """`nash prune`: from a fine-tuned `model` (a path or a reference) to a compact one in the store."""

    model: str
    name: str
    alias: str = "pruned"
    data: DataRecipe
    pruning: PruningRecipe = PruningRecipe()
    workload: WorkloadRecipe = WorkloadRecipe()
    distillation: DistillationRecipe = DistillationRecipe()
    prune_training: OptimizationRecipe = OptimizationRecipe()
    final_training: OptimizationRecipe = OptimizationRecipe()
    quantization: QuantizationRecipe = QuantizationRecipe()
    metric: MetricKind = "exact"
    seed: Seed = 0
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @property
    def precisions(self) -> list[Precision]:
        """The precisions of the phases that are not skipped."""
        return [phase.precision for phase in (self.prune_training, self.final_training) if phase.epochs]

    @model_validator(mode="after")
    def _gates_are_trained(self) -> Self:
        if not self.prune_training.epochs and (self.pruning.encoder_sparsity or self.pruning.speedup):
            raise ValueError("prune_training.epochs = 0 leaves the gates untrained: give more, or encoder_sparsity = 0")
        return self

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = self.pruning.model_fields_set & set(SHAPE_KEYS)
        if self.pruning.speedup is not None and given:
            raise ValueError(
                f"pruning.speedup chooses the shape: leave {' and '.join(sorted(given))} out, or leave speedup out"
            )
        if self.pruning.speedup is not None and self.pruning.gated_stacks == "both":
            raise ValueError("pruning.speedup knows what the encoder's widths cost: leave gated_stacks at 'encoder'")
        heads, units, sublayers = (getattr(self.pruning, f"gate_{kind}") for kind in ("heads", "units", "sublayers"))
        if self.pruning.speedup is not None and (heads != units or (sublayers and not heads)):
            raise ValueError(
                "pruning.speedup is planned with heads and units cut alike: switch gate_heads and gate_units "
                "both on, or all three kinds of gates off"
            )
        return self


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
    if isinstance(model, str) and looks_like_path(model):
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
