"""The page of one run: `run.html` in its folder, written again while it trains, and whole in itself."""

import importlib.util
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from model_store.errors import ModelStoreError
from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from nash import ranks
from nash.measuring.metrics import HEADLINE
from nash.recipes.recipe import dotted
from nash.run.folder import read_json
from nash.run.live_log import CUT, read_log

RUN_PAGE = "run.html"
REFRESH_S = 20  # a browser looks again this often, while the run goes on
_LOSSES = ("loss", "task", "prediction", "encoder", "decoder", "lagrangian")
_PACKAGES = ("jinja2", "matplotlib")


class RunPage:
    """Writes the page of a run's folder from the files in it.

    A page is no reason for a run to fail: an error while it is written is said once, and ends the page, not the run.
    """

    def __init__(self, folder: Path, title: str, console: Console) -> None:
        self.folder = folder
        self.title = title
        self.console = console
        self.phase = ""
        self.steps = 0
        self._written_s: float | None = None
        missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
        self._able = ranks.first() and not missing
        if missing:
            console.print(
                f"{RUN_PAGE} is not written: {', '.join(missing)} not installed (pip install 'nash[sweep]')",
                soft_wrap=True,
            )

    def begin(self, phase: str, steps: int) -> None:
        """A phase of training begins."""
        self.phase, self.steps = phase, steps
        self.refresh(older_than_s=10)

    def refresh(self, *, older_than_s: float) -> None:
        """Write the page of a run that goes on, if the last one is so old."""
        if self._written_s is None or time.monotonic() - self._written_s >= older_than_s:
            self._write("running")

    def end(self, state: str) -> None:
        """Write the page of a run that has ended."""
        self._write(state)

    def _write(self, state: str) -> None:
        if not self._able:
            return
        try:
            text = render(self.folder, self.title, state, self.phase, self.steps)
            partial = self.folder / f".{RUN_PAGE}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.folder / RUN_PAGE)
        except Exception as error:  # noqa: BLE001  whatever it is, training is worth more than its page
            self._able = False
            self.console.print(f"{RUN_PAGE} is no longer written: {type(error).__name__}: {error}", soft_wrap=True)
        self._written_s = time.monotonic()


@contextmanager
def page_of(folder: Path, title: str, console: Console, *, done: bool) -> Iterator[RunPage]:
    """The page of the work in the block; its last state is how that ended. A run that was `done` keeps its page."""
    page = RunPage(folder, title, console)
    try:
        yield page
    except KeyboardInterrupt:
        page.end("interrupted; the same command resumes it")
        raise
    except Exception as error:
        page.end(" ".join(str(error).split()))
        raise
    if not (done and (folder / RUN_PAGE).is_file()):
        page.end("done")
        console.print(f"page: {folder / RUN_PAGE}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart and the names of its lines."""

    title: str
    names: list[str]
    picture: str


@dataclass(frozen=True, kw_only=True)
class PhaseView:
    """What the page shows of one phase."""

    name: str
    step: int
    charts: list[Chart]
    cut_steps: list[int]
    cuts: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class SublayerRow:
    """One sublayer in the picture of what was cut, or the hidden states.

    `parts` says of each head whether it is kept; units and dimensions have none.
    """

    name: str
    parts: list[bool] | None
    kept: int
    total: int


def render(folder: Path, title: str, state: str, phase: str, steps: int) -> str:
    """The whole page. `state` is "running", "done" or why the run ended; `phase`, of `steps` steps, is the last one."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from nash.page.theme import DARK_TONES, LIGHT

    environment = Environment(
        loader=PackageLoader("nash.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = lambda name: name.replace("_", " ")
    environment.filters["safe_svg"] = Markup  # this program made it from numbers
    settings = read_json(folder / "settings.json") or {}
    metric = HEADLINE[settings["metric"]] if "metric" in settings else ""
    spec = _shape(folder)
    phases = [_view(path, metric) for path in sorted(folder.glob("*_log.jsonl"), key=lambda p: p.stat().st_ctime_ns)]
    return environment.get_template("run.html.jinja").render(
        title=title,
        state=state,
        phase=phase,
        steps=steps,
        refresh_s=REFRESH_S,
        metric=metric,
        phases=[view for view in phases if view.charts],
        rows=[] if spec is None else list(_rows(spec)),
        results=read_json(folder / "results.json"),
        plan=read_json(folder / "plan.json"),
        settings={key: value for key, value in dotted(settings) if value is not None},
        inputs=read_json(folder / "inputs.json") or {},
        precision=read_json(folder / "precision.json") or {},
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        light_tones=LIGHT.tones,
        dark_tones=DARK_TONES,
    )


def _view(path: Path, metric: str) -> PhaseView:
    from nash.page.charts import cut_over_time, lines

    entries, name = read_log(path), path.name.removesuffix("_log.jsonl")

    def series(keys: Iterable[str]) -> dict[str, list[tuple[float, float]]]:
        found = {key: [(e["step"], e[key]) for e in entries if key in e] for key in keys}
        return {key.removeprefix("eval_"): points for key, points in found.items() if points}

    losses = series(_LOSSES)
    validation = series(["eval_loss"])
    wanted: dict[str, Mapping[str, list[tuple[float, float]]]] = {
        "Training losses": losses,
        "Validation loss, nats per token": {"validation": validation["loss"]} if validation else {},
        f"Quality on validation rows: {metric.replace('_', ' ')}, %": series([f"eval_{metric}"]),
        "Sparsity": series(["sparsity"]),
        "Learning rate": series(["learning_rate"]),
    }
    charts = [
        Chart(title=title, names=list(found), picture=lines(found, title, f"{name}-{number}"))
        for number, (title, found) in enumerate(wanted.items())
        if found
    ]
    steps, cuts = cut_over_time(entries, CUT)
    return PhaseView(
        name=name, step=int(entries[-1]["step"]) if entries else 0, charts=charts, cut_steps=steps, cuts=cuts
    )


def _shape(folder: Path) -> ModelSpec | None:
    """The shape of the pruned model, as soon as it has one."""
    for name in ("model", "compact"):
        try:
            spec = Model.open(folder / name).spec
        except ModelStoreError:
            continue
        return spec if spec.compact else None
    return None


def _rows(spec: ModelSpec) -> Iterator[SublayerRow]:
    heads = range(spec.num_heads)

    def attention(name: str, kept: Iterable[int]) -> SublayerRow:
        left = set(kept)
        return SublayerRow(name=name, parts=[head in left for head in heads], kept=len(left), total=spec.num_heads)

    if spec.width < spec.d_model:
        yield SublayerRow(name="hidden states", parts=None, kept=spec.width, total=spec.d_model)
    for number, layer in enumerate(spec.encoder):
        yield attention(f"encoder {number} self-attention", layer.heads)
        yield SublayerRow(name=f"encoder {number} feed-forward", parts=None, kept=layer.ffn, total=spec.d_ff)
    there = {layer.origin: layer for layer in spec.decoder}
    for number in range(spec.dense_decoder_layers):
        found = there.get(number)
        yield attention(f"decoder {number} self-attention", found.self_heads if found else ())
        yield attention(f"decoder {number} cross-attention", found.cross_heads if found else ())
        kept = found.ffn if found else 0
        yield SublayerRow(name=f"decoder {number} feed-forward", parts=None, kept=kept, total=spec.decoder_d_ff)
