"""One run of the pruner: its recipe, its inputs, and the folder with its results so far."""

from functools import cached_property
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from nash.data.examples import TokenizedPairs
from nash.data.rows import TaskRow
from nash.measuring.speedup import SpeedPlan, TablePlan
from nash.modeling.folders import load_tokenizer
from nash.page.run_page import RunPage
from nash.preflight import asked_layers
from nash.pruning.task import Task
from nash.recipes.recipe import PruneRecipe
from nash.run.folder import RunFolder
from nash.run.progress import Stage
from nash.training.teacher_answers import with_teacher_answers

# In the run's folder: the report on the trimmed vocabulary, and the decoder layers that "auto" chose.
VOCABULARY, LAYERS = "vocabulary.json", "layers.json"


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
        answers: Path | None = None,
        page: RunPage | None = None,
    ) -> None:
        """`answers`: a folder of teacher's answers, shared by runs of the same model and data. Default: the run's."""
        self.recipe = recipe
        self.task = task
        self.folder = folder
        self.console = console
        self.plan = plan
        self.page = page
        # A teacher with a trimmed vocabulary belongs to this run, and so do its answers.
        self.answers_folder = folder.path if answers is None or recipe.pruning.trim_vocab else answers

    @property
    def path(self) -> Path:
        """The path of the run's folder."""
        return self.folder.path

    @cached_property
    def teacher(self) -> Model:
        """The dense model, with its vocabulary trimmed if the recipe asks for it."""
        return Model.open(self.path / "trimmed") if self.recipe.pruning.trim_vocab else self.task.model

    @property
    def spec(self) -> ModelSpec:
        """The teacher's shape."""
        return self.teacher.spec

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer."""
        return load_tokenizer(self.teacher.folder) if self.recipe.pruning.trim_vocab else self.task.tokenizer

    @cached_property
    def kept_layers(self) -> tuple[int, ...]:
        """The decoder layers that the student keeps."""
        chosen = self.folder.read_json(LAYERS)
        return asked_layers(self.recipe, self.spec) if chosen is None else tuple(chosen)

    @cached_property
    def train_rows(self) -> list[TaskRow]:
        """The training rows; with `sequence_level`, their targets are the teacher's answers, generated if missing."""
        rows = self.task.train_rows
        if not self.recipe.distillation.sequence_level:
            return rows
        return with_teacher_answers(rows, self.teacher, self.recipe.data, self.answers_folder, self.console)

    @cached_property
    def train_pairs(self) -> TokenizedPairs:
        """The training rows as tokens."""
        pairs = self.tokenized(self.train_rows)
        if pairs.cut:
            self.console.print(f"{pairs.cut} training texts are longer than the limits and were cut")
        return pairs

    @cached_property
    def validation_pairs(self) -> TokenizedPairs:
        """The validation rows as tokens."""
        return self.tokenized(self.task.validation_rows)

    def tokenized(self, rows: list[TaskRow]) -> TokenizedPairs:
        """Rows as tokens of the teacher's vocabulary, under the recipe's limits."""
        with Stage("tokenizing the texts", self.console):
            return TokenizedPairs.under(self.recipe.data, rows, self.tokenizer)
