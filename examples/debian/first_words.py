"""The synopsis task without a model: the first words of the description, as many as do best on the validation rows.

    python -m examples.debian.first_words

A summariser has to beat this before its ROUGE says anything.
"""

import argparse
import json
from pathlib import Path

from nash.data.rows import TaskRow, read_rows
from nash.measuring.metrics import HEADLINE, summarization
from nash.recipes.recipe import FinetuneRecipe, read_recipe

_MOST_WORDS = 16  # the longest synopsis that the data has


def first_words(row: TaskRow, count: int) -> str:
    """The first words of a row's description, which follows the package's name and a colon."""
    _, _, description = row.source.partition(": ")
    return " ".join(description.split()[:count])


def scores(rows: list[TaskRow], count: int) -> dict[str, float]:
    """ROUGE of the first `count` words of every row."""
    return summarization([first_words(row, count) for row in rows], [row.targets for row in rows])


def main() -> None:
    """Print the number of words that validation chose, and the test rows' ROUGE, as JSON."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="ROUGE of the first words of each description.")
    parser.add_argument("--recipe", type=Path, default=here / "finetune-synopsis.toml", help="default: %(default)s")
    data = read_recipe(FinetuneRecipe, parser.parse_args().recipe).data
    validation, test = read_rows(data.validation, data), read_rows(data.test or data.validation, data)
    best = max(range(1, _MOST_WORDS + 1), key=lambda count: scores(validation, count)[HEADLINE["summarization"]])
    print(json.dumps({"words": best, "n": len(test), "metrics": scores(test, best)}, indent=1))


if __name__ == "__main__":
    main()
