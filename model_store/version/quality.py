"""What a version was found to be worth in one dtype: the records that decide which dtype it is served in.

A record stands beside its version in the store and is never changed. One dtype's record says something only beside
float32's on the same rows under the same limits.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_origin

KIND = "quality"  # among a version's measurements
REFERENCE = "float32"
MOST_LOSS = 0.005  # of the reference's figure: so much worse and a dtype's quality still holds
_ROUNDING = 1e-9  # figures are shares of whole rows: they meet the bound exactly, and floats just miss it


@dataclass(frozen=True, kw_only=True)
class QualityRecord:
    """One figure of one version, decoded by the engine in one dtype."""

    dtype: str
    metric: str
    value: float  # in percent
    lower_is_better: bool
    data: str  # sha256 of the rows, sources as the model gets them and all right answers
    split: str
    rows: int  # their number
    max_source_tokens: int
    max_new_tokens: int
    device: str  # "cpu" or "cuda"
    engine: str  # what computed it, such as "native-avx512-bf16"
    instruction_sets: tuple[str, ...]  # of the processor
    code_version: str

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if not math.isfinite(self.value):
            raise ValueError(f"value is {self.value!r}")

    @property
    def task(self) -> tuple[object, ...]:
        """What was asked: records of equal tasks can be compared, and there is one of each dtype."""
        return (self.metric, self.data, self.max_source_tokens, self.max_new_tokens, self.device)

    @property
    def key(self) -> dict[str, Any]:
        """What the record's id is made from: the first of a task and dtype stays."""
        return {"kind": KIND, "dtype": self.dtype, "task": list(self.task)}

    def document(self) -> dict[str, Any]:
        """The record as it is stored."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "QualityRecord":
        """The record that `document` was made from; fields of later programs are passed over.

        Raises:
            ValueError: a field is missing or of another type.
        """
        try:
            given = {name: document[name] for name in _TYPES}
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from None
        sets = given["instruction_sets"]
        return cls(**given | {"instruction_sets": tuple(sets) if isinstance(sets, list) else sets})

    def holds(self, reference: "QualityRecord") -> bool:
        """Whether the figure is at most MOST_LOSS worse than the reference's on the same task."""
        loss = self.value - reference.value if self.lower_is_better else reference.value - self.value
        return loss <= MOST_LOSS * abs(reference.value) + _ROUNDING


# JSON has one kind of numbers, so a float may come back as an int.
_TYPES: Mapping[str, Any] = {
    field.name: (float, int) if field.type is float else get_origin(field.type) or field.type
    for field in fields(QualityRecord)
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the records say of one dtype: whether its quality holds, and the comparison that decides."""

    holds: bool
    why: str


def finding(dtype: str, device: str, records: Iterable[QualityRecord]) -> Finding | None:
    """Compare a dtype with float32 wherever both were recorded on the device; None where nowhere they were.

    It holds where no comparison speaks against it; the worst one is told.
    """
    known = [record for record in records if record.device == device]
    references = {record.task: record for record in known if record.dtype == REFERENCE}
    pairs = [(each, references[each.task]) for each in known if each.dtype == dtype and each.task in references]
    if not pairs:
        return None
    own, reference = max(pairs, key=_loss)
    holds = all(one.holds(other) for one, other in pairs)
    word = "holds" if holds else "does not hold"
    return Finding(
        holds=holds,
        why=f"its quality {word}: {own.metric.replace('_', ' ')} {own.value:.2f} % beside {reference.value:.2f} % in "
        f"{REFERENCE}, {own.rows} rows of {own.split}",
    )


def _loss(pair: Sequence[QualityRecord]) -> float:
    """Relative to the reference; more is worse."""
    own, reference = pair
    loss = own.value - reference.value if own.lower_is_better else reference.value - own.value
    return loss / abs(reference.value) if reference.value else loss
