"""`nash info`: what this machine has, and what nash uses. This module imports neither torch nor transformers."""

import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nash.cli.output import JsonOption, print_json, result_console
from nash.device import choose_device
from nash.errors import RequestError
from nash.precision import choose_precision
from server.engine.capabilities import AUTO, DTYPES, engine_name, speed_order, why_not
from server.engine.interface.config import EngineConfig
from server.engine.machine.cpus import available_cores, cpu_name, cpu_quota, instruction_sets, numa_nodes, usable_cpus
from server.engine.machine.cuda import cuda_devices
from server.engine.native.operator.library import operator_set
from server.engine.native.operator.set_choice import available_sets


def command(as_json: JsonOption = False) -> None:
    """Say what this machine has, which operator set is used and why, and which dtypes serve and train here."""
    document = machine_document()
    if as_json:
        print_json(document)
    else:
        _print(document)


def installed(package: str) -> str | None:
    """A package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine_document() -> dict[str, Any]:
    """The whole answer of `nash info` as one JSON object.

    Raises:
        LoadError: NASH_CPU_ISA asks for an instruction set that is not available here.
    """
    choice = operator_set()
    devices = ["cpu", *(f"cuda:{number}" for number in range(len(cuda_devices())))]
    return {
        "version": installed("nash") or "source",
        "python": platform.python_version(),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "system": platform.platform(),
        "cpu": {
            "name": cpu_name(),
            "instruction_sets": list(instruction_sets()),
            "sets": list(available_sets()),
            "chosen": choice.name,
            "why": choice.why,
            "cores": available_cores(),
            "quota": cpu_quota(),
            "threads": usable_cpus(),
            "numa_nodes": numa_nodes(),
        },
        "cuda": [{"name": device.name, "compute_capability": device.compute_capability} for device in cuda_devices()],
        "dtypes": [row for device in devices for row in _serving(device)],
        "training": _training(),
    }


def _serving(device: str) -> list[dict[str, Any]]:
    """Every dtype on one device: first those that `auto` chooses from, fastest first, then the others."""
    config = EngineConfig(device=device)
    order = speed_order(config)
    rows = []
    for dtype in (*order, *(dtype for dtype in DTYPES if dtype not in order)):
        asked = replace(config, dtype=dtype)
        refusal = why_not(asked)
        engine = engine_name(asked) if refusal is None else None
        rows.append({"dtype": dtype, "device": device, "engine": engine, "auto": dtype in order, "refused": refusal})
    return rows


def _training() -> dict[str, Any]:
    """Where `nash prune` and `nash finetune` would train, and in which precisions."""
    device = choose_device(AUTO)
    try:
        choose_precision("bfloat16", device)
        refused = {}
    except RequestError as error:
        refused = {"bfloat16": str(error)}
    choice = choose_precision("auto", device)
    return {
        "device": device,
        "precisions": ["float32"] if refused else ["bfloat16", "float32"],
        "auto": choice.precision,
        "why": choice.why,
        "refused": refused,
    }


def _print(document: dict[str, Any]) -> None:
    cpu, training = document["cpu"], document["training"]
    quota = "no quota" if cpu["quota"] is None else f"a quota of {cpu['quota']:g}"
    devices = [f"{each['name']} (compute capability {each['compute_capability']})" for each in document["cuda"]]
    lines = [
        ("nash", document["version"]),
        ("Python", document["python"]),
        ("torch", document["torch"] or "not installed"),
        ("transformers", document["transformers"] or "not installed"),
        ("system", document["system"]),
        ("processor", cpu["name"]),
        ("instruction sets", ", ".join(cpu["instruction_sets"]) or "none known to nash"),
        ("threads", f"{cpu['threads']} ({cpu['cores']} cores, {quota}; NUMA nodes: {cpu['numa_nodes']})"),
        ("CUDA", ", ".join(devices) or "no device"),
        ("native operator", f"{cpu['chosen'] or 'not used'} ({cpu['why']}; here: {', '.join(cpu['sets']) or 'none'})"),
    ]
    for row in document["dtypes"]:
        named = f"{row['dtype']} on {row['device']}"
        served = row["engine"] if row["auto"] else f"{row['engine']}, never chosen by auto"
        lines.append((f"serving: {named}", row["refused"] or served))
    lines += [(f"training on {training['device']}", f"{training['auto']} by auto ({training['why']})")]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        result_console().print(f"{name:<{width}}  {value}", markup=False, soft_wrap=True)
