"""The tokens of a run's rows: made once, kept in a folder, and mapped by every phase and later call."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from model_store.model.model import files_digest, tokenizer_files
from nash.data.examples import TokenizedPairs
from nash.data.rows import Rows
from nash.data.token_files import kept_tokens
from nash.data.tokens import IDS, Limits, TokenBatch, tokenized_batches
from nash.recipes.recipe import DataLayout, DataRecipe
from nash.run.disk import full_disk_named
from nash.run.progress import Stage

TOKENS = "tokens"  # the folder of the kept tokens, in the folder of a run or of its sweep
_LIBRARIES = ("tokenizers", "transformers")  # another version may split texts in another way


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """Tokenizes rows with one tokenizer, under a recipe's limits, and keeps the tokens in `folder`."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    tokenizer_folder: Path
    data: DataRecipe
    console: Console

    def pairs(self, rows: Rows, content: Mapping[str, str]) -> TokenizedPairs:
        """The pairs of the rows: those that are kept, or new ones. `content` has the digests of what is in the rows.

        Raises:
            RequestError: a limit has no room for what the tokenizer adds around every text.
            DiskFullError, NashError: the tokens cannot be written.
        """
        limits = Limits.of(self.data)
        made_from = {
            **content,
            "layout": {key: getattr(self.data, key) for key in DataLayout.model_fields},
            "limits": limits._asdict(),
            "tokenizer": files_digest(*tokenizer_files(self.tokenizer_folder)),
            "libraries": {name: version(name) for name in _LIBRARIES},
        }

        shown = ExitStack()  # the stage ends with the work, not whenever the iterator is collected

        def batches() -> Iterator[TokenBatch]:
            stage = shown.enter_context(Stage("tokenizing the texts", self.console, len(rows), unit="rows"))
            for batch in tokenized_batches(rows, self.tokenizer, limits):
                yield batch
                stage.update(stage.done + batch.rows)

        most_bytes = IDS.itemsize * sum(limits) * len(rows)
        with full_disk_named(self.folder.parent, most_bytes), shown:
            folder = kept_tokens(
                self.folder, made_from, batches, say=lambda line: self.console.print(line, soft_wrap=True)
            )
        return TokenizedPairs.in_folder(folder)
