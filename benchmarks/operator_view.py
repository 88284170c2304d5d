"""Checks whether the dashboard and the load test agree about the same minutes.

    python -m benchmarks.operator_view --store STORE --model g2p@dense --model g2p@pruned \\
        --workload examples/g2p/workload.jsonl --rate 40 --duration 2m --out FOLDER

It starts the server and a Prometheus with the committed configuration, runs `nash loadtest` against the server, runs
the dashboard's own queries, and writes the load test's report and `agreement.json` into the folder. It needs Debian's
prometheus.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import Server
from benchmarks.environment import environment
from deploy.grafana import dashboard
from deploy.native import Prometheus

PANELS = {"mean": "Speed-up, mean", "p95": "Speed-up, p95"}


def main() -> None:
    """Run the load test while Prometheus scrapes the server, print both ratios, write the JSON."""
    parser = argparse.ArgumentParser(description="The dashboard's speed-up beside the load test's.")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--model", action="append", required=True, help="a REF, once for each variant")
    parser.add_argument("--workload", type=Path, required=True)
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", help="requests a second, open loop")
    load.add_argument("--users", help="callers that wait for their answers, closed loop")
    parser.add_argument("--duration", default="2m")
    parser.add_argument("--port", type=int, default=18481)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = _check(parser, options)
    shape = ["--rate", options.rate] if options.rate else ["--users", options.users]
    command = [sys.executable, "-m", "loadtest", "--host", f"http://127.0.0.1:{options.port}", *shape]
    command += [argument for model in options.model for argument in ("--model", model)]
    command += ["--workload", str(options.workload), "--duration", options.duration, "--out", str(options.out)]
    with Server(options.store, options.model, options.port), Prometheus(f"127.0.0.1:{options.port}") as prometheus:
        prometheus.wait_for("nash_requests_running")
        status = subprocess.run(command, check=False).returncode
        if not (options.out / "summary.json").exists():
            sys.exit("error: the load test has no summary, as it says above: nothing to compare")
        time.sleep(10)  # one more scrape and one more evaluation of the rules
        seen = {title: _ask(prometheus, title, model) for title in PANELS.values()}
    summary = json.loads((options.out / "summary.json").read_text(encoding="utf-8"))
    variants = [
        _beside(variant, summary, seen) for variant in summary["variants"] if variant["ref"] != summary["baseline"]
    ]
    result = {"environment": environment(), "load_test_exit": status, "speedup_by_variant": variants}
    (options.out / "agreement.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for each in variants:
        print(
            f"{each['ref']}: dashboard {each['dashboard']['mean']:.3f}x, load test {each['load_test']['mean']:.3f}x "
            f"({each['difference']['mean']:+.1%}); p95 {each['dashboard']['p95']:.3f}x, {each['load_test']['p95']:.3f}x"
        )


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The name of the model whose variants are compared; unusable options end the program with status 2."""
    names = {ref.partition("@")[0].partition(":")[0] for ref in options.model}
    if len(set(options.model)) < 2 or len(names) > 1:
        parser.error(f"--model {' '.join(options.model)}: give two variants of one model or more, to compare them")
    if shutil.which("prometheus") is None:
        parser.error("prometheus is not installed: apt-get install prometheus")
    if not options.workload.is_file():
        parser.error(f"--workload {options.workload} is no file: give one of JSON lines, as the load test takes it")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out {options.out} is in use: give a folder that is new or empty")
    return str(names.pop())


def _ask(prometheus: Prometheus, title: str, model: str) -> dict[str, float]:
    """A panel's figure by variant, as Grafana would show it."""
    document = json.loads(dashboard.FILE.read_text(encoding="utf-8"))
    (panel,) = (panel for panel in document["panels"] if panel["title"] == title)
    expression = panel["targets"][0]["expr"].replace("$model", model).replace("$variant", ".*")
    return {each["metric"]["variant"]: round(float(each["value"][1]), 4) for each in prometheus.query(expression)}


def _beside(variant: dict[str, Any], summary: dict[str, Any], seen: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A variant's speed-ups from both sides; `difference` is the dashboard's over the load test's, minus one."""
    own = summary["speedups"]["by_ref"][variant["ref"]]["latency"]
    blind = [title for title in PANELS.values() if variant["name"] not in seen[title]]
    if own is None or blind:
        where = " and ".join([*blind, *(["the load test"] if own is None else [])])
        sys.exit(f"error: {where} gave no figure for {variant['ref']}: give the load test more time or more load")
    dashboard_ratio = {name: seen[title][variant["name"]] for name, title in PANELS.items()}
    load_test_ratio = {name: own[name]["ratio"] for name in PANELS}
    difference = {name: dashboard_ratio[name] / load_test_ratio[name] - 1 for name in PANELS}
    rounded = {"dashboard": dashboard_ratio, "load_test": load_test_ratio, "difference": difference}
    return {"ref": variant["ref"]} | {
        side: {name: round(ratio, 4) for name, ratio in ratios.items()} for side, ratios in rounded.items()
    }


if __name__ == "__main__":
    main()
