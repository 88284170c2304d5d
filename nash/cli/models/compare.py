"""`nash models lineage` and `diff`: where a version came from, and what was cut of it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nash.cli.models.shared import RefArgument, open_store, print_columns, say, size_text, summary, warn
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json

if TYPE_CHECKING:
    from rich.tree import Tree

    from model_store.model.spec import ModelSpec
    from model_store.store import Store, StoredVersion

BAR = 12  # characters of a layer's whole width


def lineage(ref: RefArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show what a version was made from and what was made from it, as a tree."""
    from rich.tree import Tree

    from nash.cli.output import result_console

    opened = open_store(store)
    asked = opened.resolve(ref)
    versions = opened.list(unreadable=warn)
    by_digest: dict[str, list[StoredVersion]] = {}
    for version in versions:
        by_digest.setdefault(version.digest, []).append(version)
    root, seen = asked.digest, {asked.digest}
    while root in by_digest:
        parent = by_digest[root][0].manifest.lineage.parent
        if parent is None or parent in seen:
            break
        root = parent
        seen.add(root)
    if as_json:
        print_json(_node(root, by_digest, asked.digest, set()))
        return
    tree = Tree(_label(root, by_digest, asked.digest))
    _grow(tree, root, by_digest, asked.digest, {root})
    result_console().print(tree)
    facts = asked.manifest.lineage
    rows = [
        *((f"data {name}", digest) for name, digest in sorted(facts.data.items())),
        *([] if facts.seed is None else [("seed", str(facts.seed))]),
        *([] if facts.code_version is None else [("code", facts.code_version)]),
        *((f"precision of {phase}", text) for phase, text in facts.precision.items()),
    ]
    if facts.trained_from is not None:
        rows.append(("initial weights", facts.trained_from))
    if rows:
        print_columns((f"{asked.ref} WAS MADE WITH", ""), rows)


def _children(digest: str, by_digest: "dict[str, list[StoredVersion]]") -> list[str]:
    return [each for each, versions in by_digest.items() if versions[0].manifest.lineage.parent == digest]


def _node(digest: str, by_digest: "dict[str, list[StoredVersion]]", asked: str, seen: set[str]) -> dict[str, Any]:
    children = [] if digest in seen else _children(digest, by_digest)
    seen.add(digest)
    return {
        "digest": digest,
        "versions": [version.ref for version in by_digest.get(digest, [])],
        "asked": digest == asked,
        "lineage": by_digest[digest][0].manifest.lineage.document() if digest in by_digest else None,
        "children": [_node(each, by_digest, asked, seen) for each in children],
    }


def _label(digest: str, by_digest: "dict[str, list[StoredVersion]]", asked: str) -> str:
    versions = by_digest.get(digest)
    if not versions:
        return f"{digest[:12]}, not in this store"
    spec = versions[0].manifest.spec
    names = ", ".join(version.ref + "".join(f" @{alias}" for alias in version.aliases) for version in versions)
    metrics = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in sorted(versions[0].manifest.metrics.items()))
    shape = f"{spec.encoder_layers}+{spec.decoder_layers} layers, {spec.parameters / 1e6:.2f} M"
    mark = "  <- asked for" if digest == asked else ""
    return f"{names}  ({shape}{'; ' + metrics if metrics else ''}){mark}"


def _grow(tree: "Tree", digest: str, by_digest: "dict[str, list[StoredVersion]]", asked: str, seen: set[str]) -> None:
    for child in _children(digest, by_digest):
        if child not in seen:
            seen.add(child)
            _grow(tree.add(_label(child, by_digest, asked)), child, by_digest, asked, seen)


def diff(ref: RefArgument, other: RefArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show two versions beside each other: shapes by layer, parameters, bytes, quality, latency."""
    opened = open_store(store)
    sides = [opened.resolve(each) for each in (ref, other)]
    specs = [opened.spec(side) for side in sides]
    latencies = _latencies(opened, sides)
    if as_json:
        documents = [
            summary(side) | {"spec": side.manifest.spec.document(), "layers": spec.layer_config()}
            for side, spec in zip(sides, specs, strict=True)
        ]
        print_json({"first": documents[0], "second": documents[1], "latency": latencies})
        return
    headings = ("", sides[0].ref, sides[1].ref, "RATIO")
    print_columns(headings, list(_figures(sides, latencies)), right=headings[1:])
    say("")
    shapes = [dict(_shapes(spec)) for spec in specs]
    names = [*shapes[0], *(name for name in shapes[1] if name not in shapes[0])]
    rows = [(name, *(shape.get(name, "-") for shape in shapes)) for name in names]
    print_columns(("LAYER", sides[0].ref, sides[1].ref), rows)


def _figures(sides: "Sequence[StoredVersion]", latencies: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    first, second = (side.manifest for side in sides)
    yield "kind", first.kind, second.kind, ""
    yield "encoder layers", str(first.spec.encoder_layers), str(second.spec.encoder_layers), ""
    yield "decoder layers", str(first.spec.decoder_layers), str(second.spec.decoder_layers), ""
    numbers = (
        ("weights", first.spec.parameters, second.spec.parameters, lambda value: f"{value / 1e6:.2f} M"),
        ("size", first.spec.bytes, second.spec.bytes, size_text),
    )
    for name, one, two, text in numbers:
        yield name, text(one), text(two), f"{one / two:.2f}" if two else ""
    for name in sorted({*first.metrics, *second.metrics}):
        texts = [f"{side.metrics[name]:.4g}" if name in side.metrics else "-" for side in (first, second)]
        both = name in first.metrics and second.metrics.get(name)
        ratio = f"{first.metrics[name] / second.metrics[name]:.2f}" if both else ""
        yield name.replace("_", " "), texts[0], texts[1], ratio
    for each in latencies:
        name = f"ms, {each['dtype']}, batch {each['batch']}, {each['source_tokens']} in, {each['new_tokens']} out"
        times = each["first"]["total_ms"], each["second"]["total_ms"]
        yield name, f"{times[0]:.2f}", f"{times[1]:.2f}", f"{times[0] / times[1]:.2f}"


def _latencies(store: "Store", sides: "Sequence[StoredVersion]") -> list[dict[str, Any]]:
    """What was recorded for both under one workload on one machine, the newest record of each."""
    from model_store.version.latency import LatencyRecord

    found = []
    for side in sides:
        records = (LatencyRecord.of(record) for record in store.records(side.ref))
        found.append({record.workload: record for record in records if record is not None})
    return [
        {
            "dtype": one.dtype,
            "processor": one.processor,
            "threads": one.threads,
            "batch": one.batch,
            "source_tokens": one.source_tokens,
            "new_tokens": one.new_tokens,
            "first": one.document(),
            "second": found[1][workload].document(),
        }
        for workload, one in found[0].items()
        if workload in found[1]
    ]


def _shapes(spec: "ModelSpec") -> Iterator[tuple[str, str]]:
    """A picture of every layer of the dense model: what is left of its heads and units, or that it is gone."""
    heads, units = spec.num_heads, spec.d_ff
    for number in range(spec.dense_encoder_layers):
        layer = spec.encoder[number] if number < len(spec.encoder) else None
        left = (0, 0) if layer is None else (len(layer.heads), layer.ffn)
        yield f"encoder {number}", f"heads {_bar(left[0], heads)}  units {_bar(left[1], units)}"
    kept = {layer.origin: layer for layer in spec.decoder}
    for number in range(spec.dense_decoder_layers):
        if number not in kept:
            yield f"decoder {number}", "dropped"
            continue
        own = kept[number]
        text = f"self {_bar(len(own.self_heads), heads)}  cross {_bar(len(own.cross_heads), heads)}"
        yield f"decoder {number}", f"{text}  units {_bar(own.ffn, spec.decoder_d_ff)}"
    if spec.width < spec.d_model:
        yield "hidden states", _bar(spec.width, spec.d_model)


def _bar(part: int, whole: int) -> str:
    filled = round(BAR * part / whole) if whole else 0
    filled = max(filled, 1) if part else 0
    return f"{'#' * filled}{'.' * (BAR - filled)} {part}/{whole}"
