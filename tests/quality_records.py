"""Made-up records of quality."""

from dataclasses import replace
from typing import Any

from model_store.version.quality import QualityRecord


def record(dtype: str, value: float, **fields: Any) -> QualityRecord:
    plain = QualityRecord(
        dtype=dtype,
        metric="exact_match",
        value=value,
        lower_is_better=False,
        data="d" * 64,
        split="test",
        rows=100,
        max_source_tokens=64,
        max_new_tokens=32,
        device="cpu",
        engine="native-avx2",
        instruction_sets=("avx2", "fma"),
        code_version="0.1.0",
    )
    return replace(plain, **fields)
