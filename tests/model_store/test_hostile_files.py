"""Mutated weights and configurations: each is refused in words, or is a model that can be loaded."""

import json
import random
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import ModelStoreError
from model_store.version.source import check_publishable
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from tests.model_store.store_driver import ROOT

MUTATIONS = 1000  # of each of the two files
LONGEST_S = 5.0  # for one of them; they take milliseconds
_MOST_BYTES = 3 * 2**30  # with torch loaded; what claims more fails instead of taking the machine with it
_NUMBERS = (-1, 0, 1, 2, 7, 2**15, 2**31 - 1, 2**31, 2**62, 2**63, 2**64, 10**400, 1e308, -1e-320, 0.5)
_VALUES: tuple[Any, ...] = (None, True, "", "x" * 300, [], {}, [[]], {"a": 1}, "auto", [0] * 50, *_NUMBERS)


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """A file as a failing disk, a cut copy or an attacker would leave it."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made)) if chance.random() < 0.3 else chance.randrange(min(len(made), 4096))
        match chance.randrange(6):
            case 0:
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                made[at] = chance.randrange(256)
            case 2:
                del made[at : at + chance.randint(1, 64)]
            case 3:
                made[at:at] = chance.randbytes(chance.randint(1, 64))
            case 4:
                made[:8] = struct.pack("<Q", chance.choice((0, 1, 2**16, 2**27, 2**40, 2**63, 2**64 - 1, len(data))))
            case 5:
                del made[at:]
        if not made:
            break
    return bytes(made)


def mutated_header(data: bytes, chance: random.Random) -> bytes:
    """A file whose header says something else, and is well formed."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = chance.choice([each for each in header if each != "__metadata__"])
    entry = header[name]
    match chance.randrange(6):
        case 0:
            entry["shape"] = [chance.choice(_VALUES) for _ in range(chance.randint(0, 4))]
        case 1:
            entry["data_offsets"] = [chance.choice(_VALUES) for _ in range(chance.randint(0, 3))]
        case 2:
            entry["dtype"] = chance.choice(("F16", "F64", "I64", "F8_E4M3", "X", 7, None))
        case 3:
            header[chance.choice(("../x", "", "a" * 1000, name + "2"))] = entry
        case 4:
            del header[name]
        case 5:
            header["__metadata__"] = chance.choice(_VALUES)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def mutated_config(data: bytes, chance: random.Random) -> bytes:
    """A configuration in which some values are others, or any bytes are."""
    if chance.random() < 0.2:
        return mutated_bytes(data, chance)
    config = json.loads(data)
    for _ in range(chance.randint(1, 3)):
        key = chance.choice((*config, "auto_map", "quantization_config", "compact_encoder_layers", "compact_hidden"))
        match chance.randrange(4):
            case 0:
                config.pop(key, None)
            case 1:
                config[key] = {"AutoModel": "evil.Evil"} if key == "auto_map" else chance.choice(_VALUES)
            case _:
                config[key] = chance.choice(_VALUES)
    return json.dumps(config).encode()


def outcome(folder: Path) -> str:
    """What becomes of a folder: it is refused, or loads. Anything else is raised."""
    try:
        check_publishable(folder)
    except ModelStoreError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 2000
        return "refused"
    try:
        from model_store.model.model import Model

        Engine.load(Model.open(folder), EngineConfig(threads=1, max_source_tokens=8, max_new_tokens=8, slots=1))
    except LoadError as error:
        return f"unloadable: {error}"
    return "loaded"


CASES: dict[str, tuple[str, Callable[[bytes, random.Random], bytes]]] = {
    "weights' bytes": ("model.safetensors", mutated_bytes),
    "weights' headers": ("model.safetensors", mutated_header),
    "configuration": ("config.json", mutated_config),
}


@pytest.mark.parametrize("case", CASES)
def test_mutations(case: str, built_t5: Path, tmp_path: Path) -> None:
    """In a process of its own, with little memory: a crash or a hoarder would end it."""
    shutil.copytree(built_t5, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "tests.model_store.test_hostile_files", case, str(tmp_path / "model"), str(MUTATIONS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["refused"] + found["loaded"] == MUTATIONS, found
    assert found["refused"] > MUTATIONS // 10
    file_bytes = (built_t5 / CASES[case][0]).stat().st_size
    assert found["grown_bytes"] < 2 * file_bytes + 32 * 2**20, found  # the second term is the interpreter's own


def _run(case: str, folder: Path, count: int) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    name, mutate = CASES[case]
    original, chance = (folder / name).read_bytes(), random.Random(case)
    counts: dict[str, Any] = {"refused": 0, "loaded": 0}
    outcome(folder)  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        data = mutate(original, chance)
        (folder / name).write_bytes(data)
        started = time.monotonic()
        try:
            what = outcome(folder)
        except Exception as error:
            culprit = f"mutation {number} of {case}, {data[:2000]!r}"
            raise AssertionError(f"{culprit}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - started < LONGEST_S, f"mutation {number} of {case} took too long"
        assert what in counts, f"mutation {number} of {case} can be published and is {what}"
        counts[what] += 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return counts | {"grown_bytes": 1024 * (after - before)}


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
