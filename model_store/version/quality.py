"""Records of a version's measured quality in one dtype, which decide the dtype it is served in.

A record is stored beside its version and never changed. A dtype's record is meaningful only in comparison with
float32's on the same rows under the same limits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_origin

KIND = "quality"  # among a version's measurements
REFERENCE = "float32"
MOST_LOSS = 0.005  # the largest loss, relative to the reference's figure, at which a dtype's quality still holds
_ROUNDING = 1e-9  # figures are fractions of whole rows and can meet the bound exactly, which floats may just miss


@dataclass(frozen=True, kw_only=True)
class QualityRecord:
    """One figure of one version, decoded by the engine in one dtype."""

    dtype: str
    metric: str
    value: float  # in percent
    lower_is_better: bool
    data: str  # sha256 of the rows: sources as the model gets them, and all correct answers
    split: str
    rows: int  # their number
    max_source_tokens: int
    max_new_tokens: int
    device: str  # "cpu" or "cuda"
    engine: str  # what ran it, such as "native-avx512-bf16"
    instruction_sets: tuple[str, ...]  # of the processor
    code_version: str

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if not -1e300 < self.value < 1e300:
            raise ValueError(f"value is {self.value!r}")

    @property
    def task(self) -> tuple[object, ...]:
        """What was measured. Records of equal tasks can be compared; each dtype has one per task."""
        return (self.metric, self.data, self.max_source_tokens, self.max_new_tokens, self.device)

    @property
    def key(self) -> dict[str, Any]:
        """The source of the record's id. The first record of a task and dtype is kept."""
        return {"kind": KIND, "dtype": self.dtype, "task": list(self.task)}

    def document(self) -> dict[str, Any]:
        """The record as stored."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "QualityRecord":
        """The record that `document` was made from; fields added by later programs are ignored.

        Raises:
            ValueError: a field is missing or has the wrong type.
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


# JSON has only one number type, so a float may come back as an int.
_TYPES: Mapping[str, Any] = {
    field.name: (float, int) if field.type is float else get_origin(field.type) or field.type
    for field in fields(QualityRecord)
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the records say about one dtype: whether its quality holds, and the comparison that decides."""

    holds: bool
    why: str


def finding(dtype: str, device: str, records: Iterable[QualityRecord]) -> Finding | None:
    """Compare a dtype with float32 on every task recorded for both on the device; None if there is none.

    The quality holds if it holds in every comparison; `why` reports the worst one.
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
    """The loss relative to the reference; more is worse."""
    own, reference = pair
    loss = own.value - reference.value if own.lower_is_better else reference.value - own.value
    return loss / abs(reference.value) if reference.value else loss
