"""Model cards: what a stored version is, as the README.md that the Hugging Face hub shows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from model_store.store import StoredVersion
from model_store.version.latency import LatencyRecord
from model_store.version.quality import KIND as QUALITY
from model_store.version.quality import QualityRecord

# The identifiers of https://huggingface.co/docs/hub/repositories-licenses that models of these families carry.
_LICENCES = frozenset(
    {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0", "openrail"}
)
_HUB = "hub:"
CARD = "README.md"


def model_card(
    version: StoredVersion,
    parent: StoredVersion | None,
    records: Sequence[Mapping[str, Any]],
    *,
    stock: bool = False,
) -> str:
    """The card of a version: a metadata block and what is known of its shape, origin, quality and speed.

    `stock`: of a copy of it that needs no code of ours.
    """
    parts = [_metadata(version, parent), _head(version, parent), _shape(version, parent), _quality(version, records)]
    parts += [_latency(records), _use(stock=stock or version.manifest.kind == "dense"), _origin(version)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(version: StoredVersion, parent: StoredVersion | None) -> str:
    """The block of YAML at the top. Every value is written as JSON, which YAML includes."""
    manifest = version.manifest
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text2text-generation"}
    fields["tags"] = ["encoder-decoder", manifest.spec.family]
    if manifest.kind != "dense":
        fields["tags"] += ["pruned", "nash"]
    if manifest.licence is not None:
        known = manifest.licence.lower()
        fields["license"] = known if known in _LICENCES else "other"
        if known not in _LICENCES:
            fields["license_name"] = manifest.licence
    origin = manifest.lineage.trained_from or (None if parent is None else parent.manifest.lineage.trained_from)
    if origin is not None and origin.startswith(_HUB):
        fields["base_model"] = origin.removeprefix(_HUB).partition("@")[0]
    if manifest.metrics:
        on = manifest.measured_on
        dataset = {"type": "unknown", "name": "the task's own rows"} | ({} if on is None else {"split": on.split})
        metrics = [{"type": name, "value": round(value, 4)} for name, value in sorted(manifest.metrics.items())]
        result = {"task": {"type": "text2text-generation"}, "dataset": dataset, "metrics": metrics}
        fields["model-index"] = [{"name": version.name, "results": [result]}]
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _head(version: StoredVersion, parent: StoredVersion | None) -> str:
    spec = version.manifest.spec
    text = f"# {version.name}\n\nAn encoder-decoder model ({spec.family})"
    if version.manifest.kind == "dense":
        return f"{text}, {spec.parameters / 1e6:.2f} million weights in {spec.dtype}."
    of = "a dense model" if parent is None else f"`{parent.name}` ({parent.manifest.spec.parameters / 1e6:.2f} million)"
    return (
        f"{text} that was pruned from {of} to {spec.parameters / 1e6:.2f} million weights in {spec.dtype}, and trained "
        "to answer as the dense model does."
    )


def _shape(version: StoredVersion, parent: StoredVersion | None) -> str:
    spec = version.manifest.spec
    rows = [
        ("encoder layers", spec.encoder_layers, spec.dense_encoder_layers),
        ("decoder layers", spec.decoder_layers, spec.dense_decoder_layers),
        ("width of the hidden states", spec.width or spec.d_model, spec.d_model),
        ("vocabulary", spec.vocab_size, spec.dense_vocab_size or spec.vocab_size),
    ]
    if parent is not None:
        rows.append(("weights", spec.parameters, parent.manifest.spec.parameters))
    lines = [f"| {name} | {own:,} | {dense:,} |" for name, own, dense in rows]
    if spec.encoder_sparsity:
        lines.append(f"\n{100 * spec.encoder_sparsity:.0f} % of the encoder's heads and units were cut.")
    return "\n".join(["## Shape\n", "| | this model | dense |", "| --- | --: | --: |", *lines])


def _quality(version: StoredVersion, records: Sequence[Mapping[str, Any]]) -> str:
    manifest = version.manifest
    rows = [(name, value, "as trained", "") for name, value in sorted(manifest.metrics.items())]
    for each in (QualityRecord.of(record) for record in records if record.get("kind") == QUALITY):
        rows.append((each.metric, each.value, f"{each.dtype} on {each.engine}", f"{each.rows:,} of {each.split}"))
    if not rows:
        return ""
    lines = [f"| {name.replace('_', ' ')} | {value:.2f} % | {how} | {of} |" for name, value, how, of in rows]
    if manifest.measured_on is not None:
        on = manifest.measured_on
        lines.append(f"\nThe figures as trained are of {on.rows:,} rows of {on.split}, scored once.")
    return "\n".join(["## Quality\n", "| metric | value | computed in | rows |", "| --- | --: | --- | --- |", *lines])


def _latency(records: Sequence[Mapping[str, Any]]) -> str:
    known = [record for record in map(LatencyRecord.of, records) if record is not None]
    if not known:
        return ""
    lines = [
        f"| {each.processor}, {each.threads} threads | {each.dtype} | {each.batch} | {each.source_tokens} in, "
        f"{each.new_tokens} out | {each.encode_ms:.2f} | {each.step_ms:.3f} | {each.total_ms:.2f} |"
        for each in known
    ]
    head = "| hardware | dtype | batch | tokens | encoder ms | step ms | total ms |"
    return "\n".join(["## Speed\n", head, "| --- | --- | --: | --- | --: | --: | --: |", *lines])


def _use(*, stock: bool) -> str:
    register = [] if stock else ["import nash  # registers the compact model's class"]
    return "\n".join(
        [
            "## Use\n",
            "```python",
            *register,
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
            "",
            'model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            'answer = model.generate(**tokenizer("TEXT", return_tensors="pt"))[0]',
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
            "```",
        ]
    )


def _origin(version: StoredVersion) -> str:
    lineage = version.manifest.lineage
    facts = [("digest of this version", version.digest), ("published", version.created_at)]
    for name, value in (("made from", lineage.parent), ("initial weights", lineage.trained_from)):
        facts += [] if value is None else [(name, value)]
    facts += [(f"data, {name}", digest) for name, digest in sorted(lineage.data.items())]
    facts += [(f"computed in, {phase}", text) for phase, text in lineage.precision.items()]
    facts += [] if lineage.seed is None else [("seed", str(lineage.seed))]
    facts += [] if lineage.code_version is None else [("code", lineage.code_version)]
    lines = [f"| {name} | `{value}` |" for name, value in facts]
    recipe = f"\n\n```json\n{json.dumps(lineage.recipe, indent=2, sort_keys=True)}\n```" if lineage.recipe else ""
    return "## Origin\n\n| | |\n| --- | --- |\n" + "\n".join(lines) + recipe
