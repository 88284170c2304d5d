"""`nash bench`: compare the speed of models side by side on this machine."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console

if TYPE_CHECKING:
    from model_store.version.latency import LatencyRecord


def command(
    models: Annotated[list[str], typer.Argument(metavar="REF...", help="Models in the store, or model directories.")],
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Sources in one batch; may be given several times. Default: 1."),
    ] = None,
    source_tokens: Annotated[int, typer.Option("--source-tokens", min=1, help="Length of every source.")] = 64,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Forced length of every answer.")] = 64,
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="A dtype, or auto: the fastest whose recorded quality holds, else float32."),
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto: CUDA if there is one.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the engine. Default: the engine chooses.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Number of measured runs; the medians are shown.")
    ] = 5,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the figures, with the hardware, beside each version in the store.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Measure the latency of models on the engine that serves them, run in turn, with forced lengths."""
    from model_store.store import Store
    from nash.device import choose_device
    from nash.preflight import check_bench
    from server.engine.capabilities import engine_name
    from server.engine.interface.config import EngineConfig

    asked = EngineConfig(dtype=dtype, device=choose_device(device), threads=threads)
    opened = Store(store)
    check_bench(models, asked, opened, record=record)

    import torch

    from nash.checkpoints.folder import locate
    from nash.measuring.latency import Workload, measure_side_by_side
    from nash.modeling.folders import quiet_libraries
    from nash.run.progress import Stage
    from server.engine.dtype_choice import choose_dtype
    from server.engine.engine import Engine

    quiet_libraries()
    resolved = [locate(model, opened) for model in models]
    choices = [
        choose_dtype(asked, () if model.version is None else opened.quality(model.version.ref)) for model in resolved
    ]
    for model, choice in zip(resolved, choices, strict=True):
        progress_console().print(f"{model.ref} in {choice.dtype} ({choice.why})", soft_wrap=True)
    rows: list[dict[str, Any]] = []
    for size in batch or [1]:
        lengths = {"batch": size, "source_tokens": source_tokens, "new_tokens": new_tokens}
        configs = [
            Workload(**lengths, dtype=choice.dtype, threads=threads, device=asked.device).config for choice in choices
        ]
        title = f"batch {size}, {source_tokens} tokens in and {new_tokens} out"
        with Stage(title, progress_console(), repeats, unit="turns", steady=True) as stage:
            engines = [Engine.load(model.model, config) for model, config in zip(resolved, configs, strict=True)]
            latencies = measure_side_by_side(
                engines,
                batch=size,
                source_tokens=source_tokens,
                new_tokens=new_tokens,
                repeats=repeats,
                watch=stage.update,
            )
        for model, choice, config, latency in zip(resolved, choices, configs, latencies, strict=True):
            named = {"ref": model.ref, "dtype": choice.dtype, "dtype_why": choice.why, "engine": engine_name(config)}
            named["device"] = config.device
            times = {"encode_ms": latency.encoder_ms, "step_ms": latency.step_ms, "total_ms": latency.total_ms}
            times["tokens_per_s"] = 1e3 * size * new_tokens / latency.total_ms
            rows.append(named | {"threads": torch.get_num_threads()} | lengths | times)
            if record:
                opened.add_latency(model.ref, _record(rows[-1], repeats))
    if as_json:
        print_json(rows)
    else:
        _print_table(rows)


def _record(row: dict[str, Any], repeats: int) -> "LatencyRecord":
    """A row of the result as the store keeps it."""
    from model_store.objects.times import now_text
    from model_store.version.latency import LatencyRecord
    from nash.cli.info import installed
    from nash.device import device_name

    times = {name: round(row[name], 4) for name in ("encode_ms", "step_ms", "total_ms")}
    same = ("dtype", "engine", "device", "threads", "batch", "source_tokens", "new_tokens")
    return LatencyRecord(
        **{name: row[name] for name in same},
        **times,
        processor=device_name(row["device"]),
        repeats=repeats,
        at=now_text(),
        code_version=installed("nash") or "source",
    )


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    first = rows[0]
    table = Table(
        caption=f"{first['source_tokens']} tokens in, {first['new_tokens']} out, "
        f"{first['threads']} threads; medians; a step advances the whole batch by one token"
    )
    table.add_column("model", overflow="fold")
    table.add_column("dtype")
    for heading in ("batch", "encode ms", "step ms", "total ms", "tokens/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (f"{row[key]:.2f}" for key in ("encode_ms", "step_ms", "total_ms"))
        table.add_row(str(row["ref"]), str(row["dtype"]), str(row["batch"]), *figures, f"{row['tokens_per_s']:.0f}")
    result_console().print(table)
