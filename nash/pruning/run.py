"""One run of the pruner: its recipe, its inputs, and the folder with its results so far."""

import json
from functools import cached_property
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from nash.data.examples import TokenizedPairs
from nash.data.rows import Rows, file_digest
from nash.device import choose_device
from nash.measuring.speedup import SpeedPlan, TablePlan
from nash.modeling.folders import load_tokenizer
from nash.page.run_page import RunPage
from nash.preflight import asked_layers
from nash.pruning.task import Task
from nash.recipes.recipe import PruneRecipe
from nash.run.folder import RunFolder
from nash.run.trackers import Trackers
from nash.training.teacher_answers import answers_file, with_teacher_answers
from nash.training.token_cache import TOKENS, TokenCache

# In the run's folder: the report on the trimmed vocabulary, the decoder layers that were chosen on data, and the
# teacher if it was trained on.
VOCABULARY, LAYERS, TEACHER = "vocabulary.json", "layers.json", "teacher"


class PruneRun:
    """What the stages of a run read; results of earlier stages come from the run's folder."""

    def __init__(
        self,
        recipe: PruneRecipe,
        task: Task,
        folder: RunFolder,
        console: Console,
        *,
        plan: SpeedPlan | TablePlan | None = None,
        shared: Path | None = None,
        page: RunPage | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        """`shared`: a folder of tokens and teacher's answers, for runs of one model and data. Default: the run's."""
        self.recipe = recipe
        self.task = task
        self.folder = folder
        self.console = console
        self.plan = plan
        self.page = page
        self.trackers = trackers
        # A teacher that this run changes belongs to it, and so do its answers.
        own = recipe.pruning.trim_vocab or recipe.distillation.teacher_steps > 0
        self.answers_folder = folder.path if shared is None or own else shared
        self._tokens = (folder.path if shared is None else shared) / TOKENS

    @property
    def path(self) -> Path:
        """The path of the run's folder."""
        return self.folder.path

    @cached_property
    def device(self) -> str:
        """Where this process trains, calibrates and evaluates."""
        return choose_device(self.recipe.device)

    @cached_property
    def dense(self) -> Model:
        """The dense model, with its vocabulary trimmed if the recipe asks for it."""
        return Model.open(self.path / "trimmed") if self.recipe.pruning.trim_vocab else self.task.model

    @cached_property
    def teacher(self) -> Model:
        """The dense model, trained on if the recipe asks for it."""
        return Model.open(self.path / TEACHER) if self.recipe.distillation.teacher_steps else self.dense

    @property
    def spec(self) -> ModelSpec:
        """The teacher's shape."""
        return self.dense.spec

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer."""
        return load_tokenizer(self.dense.folder) if self.recipe.pruning.trim_vocab else self.task.tokenizer

    @cached_property
    def kept_layers(self) -> tuple[int, ...]:
        """The decoder layers that the student keeps."""
        chosen = self.folder.read_json(LAYERS)
        return asked_layers(self.recipe, self.spec) if chosen is None else tuple(chosen)

    @cached_property
    def train_rows(self) -> Rows:
        """The training rows; with `sequence_level`, their targets are the teacher's answers, generated if missing."""
        rows = self.task.train_rows
        if not self.recipe.distillation.sequence_level:
            return rows
        return with_teacher_answers(rows, self.teacher, self.recipe, self.device, self.answers_folder, self.console)

    @cached_property
    def train_pairs(self) -> TokenizedPairs:
        """The training rows as tokens."""
        if self.recipe.distillation.sequence_level:
            rows = self.train_rows  # generates the answers that are missing
            distillation = self.recipe.distillation
            mixed = {"keep": distillation.keep_targets, "least": distillation.least_answer_quality}
            made_from = {
                "data": self.task.inputs["train"],
                "answers": file_digest(answers_file(self.answers_folder, distillation)),
                "mixed": json.dumps(mixed | {"metric": self.recipe.metric}),
            }
            pairs = self._cache.pairs(rows, made_from)
        else:
            pairs = self.data_pairs
        if pairs.cut:
            self.console.print(f"{pairs.cut} training texts are longer than the limits and were cut")
        return pairs

    @cached_property
    def data_pairs(self) -> TokenizedPairs:
        """The training rows with the data's own targets, as tokens."""
        return self._cache.pairs(self.task.train_rows, {"data": self.task.inputs["train"]})

    @cached_property
    def validation_pairs(self) -> TokenizedPairs:
        """The validation rows as tokens."""
        return self._cache.pairs(self.task.validation_rows, {"data": self.task.inputs["validation"]})

    @cached_property
    def _cache(self) -> TokenCache:
        """Rows as tokens of the teacher's vocabulary, under the recipe's limits."""
        return TokenCache(
            folder=self._tokens,
            tokenizer=self.tokenizer,
            tokenizer_folder=self.dense.folder,
            data=self.recipe.data,
            console=self.console,
        )
