"""The dashboard "Dense against pruned", as code.

    python -m deploy.grafana.dashboard            write dashboards/nash.json
    python -m deploy.grafana.dashboard --check    fail if the file and this module differ

Each panel's description says what it shows; docs/operations.md explains how to interpret it. A series is always named
by its variant alone, so that Grafana gives a variant the same colour in every panel.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    FieldColor,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).parent / "dashboards" / "nash.json"
UID = "nash-dense-against-pruned"

_DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLUMNS = 24  # of Grafana's grid
_OWN = 'model="$model", variant=~"$variant"'
_TRAFFIC = f'{_OWN}, mode!="compare"'  # /compare runs one variant after another, whatever else is running
_BASELINE = 'max by (model, variant) (nash_model_info{baseline="true"})'
_PARTS = ("sum", "count")  # a histogram's series besides its buckets
_PAIRS_WINDOW = "$__range"
_SPEEDUP_WINDOW = "5m"  # the window of the recording rules


_Panel = heatmap.Panel | stat.Panel | table.Panel | timeseries.Panel


def _query(expression: str, legend: str = "{{variant}}") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).datasource(_DATASOURCE)


def _targets(queries: Sequence[prometheus.Dataquery]) -> list[Builder[Dataquery]]:
    return [query.ref_id(chr(ord("A") + number)) for number, query in enumerate(queries)]


def _lines(title: str, description: str, unit: str, *queries: prometheus.Dataquery, span: int) -> timeseries.Panel:
    """Lines over time, one per variant and query, on an axis from zero."""
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(_DATASOURCE)
        .targets(_targets(queries))
        .unit(unit)
        .min(0)
        .line_width(2)
        .fill_opacity(8)
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .span(span)
        .height(8)
    )


def _speedup_stat(title: str, description: str, expression: str, *, no_value: str, span: int) -> stat.Panel:
    """One number per variant, red if the variant is slower than the baseline (below 1)."""
    steps = [Threshold(color="red"), Threshold(value=0.995, color="text"), Threshold(value=1.05, color="green")]
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(_DATASOURCE)
        .targets(_targets([_query(expression).instant()]))
        .unit("suffix:x")
        .decimals(2)
        .no_value(no_value)
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .span(span)
        .height(6)
    )


def _mean(metric: str, labels: str = _OWN, window: str = "$__rate_interval") -> str:
    """The mean of a histogram's observations in the window. Exact, whatever the buckets; empty without observations."""
    total, count = (
        f"sum by (model, variant) (rate({metric}_{part}{{{labels}}}[{window}]))" for part in ("sum", "count")
    )
    return f"{total} / ({count} > 0)"


def _quantile(share: float, metric: str, labels: str = _OWN, window: str = "$__rate_interval") -> str:
    """A quantile, interpolated within a bucket. Empty, not NaN, without observations."""
    rates = f"sum by (le, model, variant) (rate({metric}_bucket{{{labels}}}[{window}]))"
    return f"histogram_quantile({share}, {rates}) >= 0"


def _over_baseline(value: Callable[[str], str]) -> str:
    """The baseline's value over each variant's. `value` turns labels into an expression by (model, variant)."""
    every = value('model="$model"')  # the baseline counts even if it is not selected for display
    baseline = f"max by (model) (({every}) * on (model, variant) group_left () {_BASELINE})"  # as in the rules
    return f"{baseline} / on (model) group_right () ({value(_OWN)})"


def _what_pruning_buys() -> list[_Panel]:
    duration = "nash_request_duration_seconds"
    rule = f"model_variant:nash_speedup:mean5m{{{_OWN}}}"
    return [
        _speedup_stat(
            "Speed-up, mean",
            "The baseline's mean request time divided by the variant's, over the last 5 minutes, excluding /compare. "
            "Exact, but the two may answer different requests: see the pairs. The baseline itself is at 1.00x, and is "
            "shown alone if only it has traffic.",
            rule,
            no_value="no traffic on the baseline in 5 minutes",
            span=6,
        ),
        _speedup_stat(
            "Speed-up, p95",
            "The same at the 95th percentile: what the slow requests gain.",
            _over_baseline(
                lambda labels: _quantile(0.95, duration, f'{labels}, mode!="compare"', _SPEEDUP_WINDOW),
            ),
            no_value="no traffic on the baseline in 5 minutes",
            span=6,
        ),
        _speedup_stat(
            "Speed-up of /compare pairs",
            "Mean over this time range, from /compare alone: the same texts on every variant, one after the other. "
            "The controlled figure.",
            _over_baseline(lambda labels: _mean(duration, f'{labels}, mode="compare"', _PAIRS_WINDOW)),
            no_value="nothing compared in this time range",
            span=6,
        ),
        _lines(
            "Requests per second",
            "Requests that succeeded, excluding /compare.",
            "reqps",
            _query(f"sum by (variant) (rate(nash_request_duration_seconds_count{{{_TRAFFIC}}}[$__rate_interval]))"),
            span=6,
        ).height(6),
        _lines(
            "Speed-up over time",
            "The mean speed-up of the last 5 minutes, as the alerts see it. The baseline is the line at 1.",
            "suffix:x",
            _query(rule),
            span=_COLUMNS,
        ),
    ]


def _latency() -> list[_Panel]:
    duration = "nash_request_duration_seconds"
    quantiles: list[_Panel] = [
        _lines(
            f"Latency p{share * 100:g}",
            "From the arrival of a request to its complete answer, excluding /compare.",
            "s",
            _query(_quantile(share, duration, _TRAFFIC)),
            span=8,
        )
        for share in (0.5, 0.95, 0.99)
    ]
    heat = (
        heatmap.Panel()
        .title("Latency of $variant")
        .description(
            "How many requests took how long. Two bands mean two kinds of requests: long and short texts, say."
        )
        .datasource(_DATASOURCE)
        .targets(
            _targets(
                [
                    _query(
                        f"sum by (le, variant) (increase({duration}_bucket{{{_TRAFFIC}}}[$__rate_interval]))", "{{le}}"
                    ).format(PromQueryFormat.HEATMAP)
                ]
            )
        )
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .repeat("variant")
        .repeat_direction("h")
        .max_per_row(2)
        .span(_COLUMNS)
        .height(8)
    )
    rest = [
        _lines(
            "Time to first token, mean",
            "From arrival to the first token: queue, encoder, first step.",
            "s",
            _query(_mean("nash_time_to_first_token_seconds")),
            span=8,
        ),
        _lines(
            "Time per output token, mean",
            "Between a request's tokens: the decoder, which pruning shortens most.",
            "s",
            _query(_mean("nash_time_per_output_token_seconds")),
            span=8,
        ),
        _lines(
            "Time in the queue, p95",
            "Until a slot was free. Rises before anything else when a variant has more work than it can do.",
            "s",
            _query(_quantile(0.95, "nash_queue_seconds")),
            span=8,
        ),
    ]
    return [*quantiles, heat, *rest]


def _engine() -> list[_Panel]:
    padding, source, generated = (
        f'sum by (variant) (rate(nash_tokens_total{{{_OWN}, direction="{direction}"}}[$__rate_interval]))'
        for direction in ("padding", "source", "generated")
    )
    return [
        _lines(
            "Decode step, mean",
            "One step of all running requests together.",
            "s",
            _query(_mean("nash_decode_step_seconds")),
            span=8,
        ),
        _lines("Encoder batch, mean", "One batch of sources.", "s", _query(_mean("nash_encode_seconds")), span=8),
        _lines(
            "Batch size, mean",
            "Requests in a decode step. Close to the number of slots, the variant is full.",
            "short",
            _query(_mean("nash_batch_size")),
            span=8,
        ),
        _lines(
            "Running and waiting",
            "Requests that hold a slot, and those that wait for one.",
            "short",
            _query(f"sum by (variant) (nash_requests_running{{{_OWN}}})", "{{variant}} running"),
            _query(f"sum by (variant) (nash_requests_waiting{{{_OWN}}})", "{{variant}} waiting"),
            _query(f"sum by (variant) (nash_slots{{{_OWN}}})", "{{variant}} slots"),
            span=8,
        ),
        _lines(
            "Generated tokens per second",
            "All requests together.",
            "short",
            _query(generated),
            span=8,
        ),
        _lines(
            "Padding, share of source tokens",
            "The encoder's work on positions that hold no token.",
            "percentunit",
            _query(f"{padding} / ({padding} + {source})"),
            span=8,
        ),
    ]


def _health() -> list[_Panel]:
    labels = ("model", "variant", "version", "decoder_layers", "encoder_sparsity", "dtype", "engine", "baseline")
    columns = [*labels, "parent", "digest"]
    models = (
        table.Panel()
        .title("Models")
        .description("What is loaded. Speed-ups refer to the baseline; parent is the digest of the original.")
        .datasource(_DATASOURCE)
        .targets(
            _targets(
                [
                    _query(f"max by ({', '.join(columns)}) (nash_model_info{{{_OWN}}})")
                    .format(PromQueryFormat.TABLE)
                    .instant()
                ]
            )
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True, "Value": True},
                    "indexByName": {name: number for number, name in enumerate(columns)},
                },
            )
        )
        .override_by_regexp("digest|parent", [DynamicConfigValue(id_val="custom.width", value=160)])
        .span(_COLUMNS)
        .height(5)
    )
    return [
        _lines(
            "Requests per second that did not end well",
            "By outcome: client_error is the caller's fault, rejected a full queue, timeout and error the server's.",
            "reqps",
            _query(
                f'sum by (variant, outcome) (rate(nash_requests_total{{{_OWN}, outcome!="ok"}}[$__rate_interval]))',
                "{{variant}} {{outcome}}",
            ),
            span=6,
        ),
        _lines(
            "Refused before a variant was known",
            "Of all models together, by outcome: bodies that cannot be read, models that are not loaded.",
            "reqps",
            _query(
                'sum by (outcome) (rate(nash_requests_total{model="_unknown", outcome!="ok"}[$__rate_interval]))',
                "{{outcome}}",
            ),
            span=6,
        ),
        _lines(
            "Memory of the workers",
            "Weights and caches as sized at load; peak is the most that the worker's process ever held.",
            "bytes",
            _query(f"sum by (variant, kind) (nash_model_memory_bytes{{{_OWN}}})", "{{variant}} {{kind}}"),
            span=6,
        ),
        _lines(
            "Cache in use",
            "Used part of the caches for generated tokens (self) and source tokens (cross).",
            "percentunit",
            _query(f"avg by (variant, kind) (nash_cache_used_ratio{{{_OWN}}})", "{{variant}} {{kind}}"),
            span=6,
        ),
        _lines(
            "Worker restarts",
            "Workers that died and were started again, in the last hour.",
            "short",
            _query(f"sum by (variant) (increase(nash_worker_restarts_total{{{_OWN}}}[1h]))"),
            span=8,
        ),
        _lines(
            "Time of the last load",
            "From the start of the worker to ready.",
            "s",
            _query(f"max by (variant) (nash_model_load_seconds{{{_OWN}}})"),
            span=8,
        ),
        _lines(
            "Tokens of a request, mean",
            "Source and generated tokens. Where two variants differ here, they answer different requests.",
            "short",
            _query(_mean("nash_source_tokens"), "{{variant}} source"),
            _query(_mean("nash_generated_tokens"), "{{variant}} generated"),
            span=8,
        ),
        models,
    ]


def _shadow() -> list[_Panel]:
    pairs = f"increase(nash_shadow_requests_total{{{_OWN}}}[{_PAIRS_WINDOW}])"
    speedup = _mean("nash_shadow_speedup", window=_PAIRS_WINDOW)
    return [
        _lines(
            "Traffic weights",
            "Shares of the requests that name only the model. Empty if nothing is set: then one variant gets them all.",
            "percentunit",
            _query(f"sum by (variant) (nash_traffic_weight{{{_OWN}}})"),
            span=8,
        ),
        _lines(
            "Shadow: agreement",
            "Share of the pairs whose answers are the same (exact), nearly (close, ROUGE-L of 0.9 or more) or "
            "different, over this time range. Shown for the variant that is tried.",
            "percentunit",
            _query(
                f"sum by (model, variant, agreement) ({pairs})"
                f" / on (model, variant) group_left () (sum by (model, variant) ({pairs}) > 0)",
                "{{variant}} {{agreement}}",
            ),
            span=8,
        ).max(1),
        _speedup_stat(
            "Shadow: speed-up, mean",
            "Time of the variant that answers over this one's, on the same requests while nothing else ran, over this "
            "time range. The controlled figure for real traffic.",
            speedup,
            no_value="no pair in this time range",
            span=8,
        ).height(8),
    ]


def _reuse_and_protection() -> list[_Panel]:
    asked = f"increase(nash_cache_requests_total{{{_OWN}}}[{_SPEEDUP_WINDOW}])"
    return [
        _lines(
            "Answers again, share of requests",
            "In the last 5 minutes: answered from an earlier, equal request (hit), or together with one that was "
            "running (joined). Empty without --cache-bytes.",
            "percentunit",
            _query(
                f"sum by (model, variant, outcome) ({asked})"
                f" / on (model, variant) group_left () (sum by (model, variant) ({asked}) > 0)",
                "{{variant}} {{outcome}}",
            ),
            span=8,
        ).max(1),
        _lines(
            "Over their own limit",
            "Requests of all models together that were refused in the last hour, their key having used up its rate.",
            "short",
            _query("sum(increase(nash_rate_limited_total[1h])) or vector(0)", "refused"),
            span=8,
        ),
        _lines(
            "Workers ended and requests quarantined",
            "In the last hour: workers that hung and were ended (watchdog), requests that killed the worker that ran "
            "them alone (quarantined), loads refused since the files are not those that were published (damaged).",
            "short",
            *(
                _query(f"sum by (variant) (increase({metric}{{{_OWN}}}[1h]))", f"{{{{variant}}}} {name}")
                for metric, name in (
                    ("nash_watchdog_kills_total", "watchdog"),
                    ("nash_quarantined_total", "quarantined"),
                    ("nash_store_verify_failures_total", "damaged"),
                )
            ),
            span=8,
        ),
    ]


def build() -> Dashboard:
    """The whole dashboard."""
    everything = VariableOption(selected=True, text="All", value="$__all")
    dashboard = (
        Dashboard("Dense against pruned")
        .uid(UID)
        .description("What pruning buys, live: the same server's dense and pruned variants side by side.")
        .tags(["nash"])
        .readonly()
        .refresh("5s")
        .time("now-15m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .annotation(
            AnnotationQuery()
            .name("Alerts")
            .datasource(_DATASOURCE)
            .enable(True)
            .icon_color("red")
            .expr('ALERTS{alertname=~"Nash.*", alertstate="firing"}')
            .title_format("{{alertname}}")
            .text_format("{{model}} {{variant}}")
        )
        .link(
            DashboardLink("Alert rules")
            .type(DashboardLinkType.LINK)
            .url("/alerting/list?search=Nash")
            .tooltip("Prometheus's rules and their current state")
        )
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            QueryVariable("model")
            .label("Model")
            .datasource(_DATASOURCE)
            .query("label_values(nash_model_info, model)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
        )
        .with_variable(
            QueryVariable("variant")
            .label("Variants")
            .datasource(_DATASOURCE)
            .query('label_values(nash_model_info{model="$model"}, variant)')
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .current(everything)
        )
    )
    rows = {
        "What pruning buys": _what_pruning_buys(),
        "Latency": _latency(),
        "Traffic and shadow": _shadow(),
        "Engine": _engine(),
        "Reuse and protection": _reuse_and_protection(),
        "Health": _health(),
    }
    numbers = itertools.count(1)
    for title, panels in rows.items():
        dashboard.with_row(Row(title).id(next(numbers)))
        for panel in panels:
            dashboard.with_panel(panel.id(next(numbers)))
    return dashboard


def text() -> str:
    """The dashboard's JSON, as committed."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"


def main() -> None:
    """Write the file, or check that it is up to date."""
    parser = argparse.ArgumentParser(description="Write Grafana's dashboard, or check that it is up to date.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file differs")
    if not parser.parse_args().check:
        FILE.write_text(text(), encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != text():
        sys.exit(f"{FILE} is not what this module makes: run python -m deploy.grafana.dashboard")


if __name__ == "__main__":
    main()
