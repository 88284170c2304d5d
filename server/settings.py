"""The server's settings, in order of precedence: the command line, the environment, a file, the defaults below.

All of a server hold one `Settings`. When the file is read again, on SIGHUP, its values change in place (`take_up`), and
whoever reads one when it is needed has the new one.
"""

import argparse
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from server.engine.capabilities import AUTO, DTYPES
from server.engine.interface.config import MOST_THREADS, SETTINGS, EngineConfig
from server.engine.machine.cpus import share_of_the_machine, usable_cpus
from server.engine.machine.topology import default_threads
from server.errors import SettingsError
from server.telemetry.logs import FORMATS, LEVELS

ENVIRONMENT_PREFIX = "NASH_SERVER_"
STORE_VARIABLE = "NASH_STORE"  # shared with the commands that write the store


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """One model to load: a REF in the store or the path of a model directory, and how to run it."""

    ref: str
    engine: EngineConfig
    text: str = field(default="", compare=False)  # as it was written, by which two readings of a file are compared

    @classmethod
    def parse(cls, text: str) -> "ModelRequest":
        """Read `REF[,dtype=...][,threads=2][,slots=32]...`; the keys are the fields of EngineConfig.

        Raises:
            SettingsError: an unknown key, or a value of the wrong type.
        """
        ref, *options = text.split(",")
        if not ref:
            raise SettingsError(f"model {text!r} has no name: write REF[,key=value...], as in g2p@pruned,threads=2")
        chosen: dict[str, Any] = {"dtype": AUTO}
        given: set[str] = set()
        for option in options:
            key, found, value = option.partition("=")
            if key not in _ENGINE_KEYS or not found:
                known = ", ".join(_ENGINE_KEYS)
                raise SettingsError(f"model {text!r}: {option!r} is not known: use key=value with one of {known}")
            if key in given:
                raise SettingsError(f"model {text!r}: {key} is given twice")
            given.add(key)
            try:
                chosen[key] = _ENGINE_KEYS[key](value)
            except ValueError as error:
                raise SettingsError(f"model {text!r}: {key}={value}: {error}") from error
        return cls(ref=ref, engine=EngineConfig(**chosen).with_spare_slots(), text=text)


_MODEL_HELP = "a variant to serve; repeat it. Keys: " + "; ".join(f"{key}: {about}" for key, about in SETTINGS.items())


def _text(value: str) -> str:
    if not value:
        raise ValueError("give a value")
    return value


def _dtype(value: str) -> str:
    if value not in (AUTO, *DTYPES):
        raise ValueError(f"there is no such dtype: use one of {AUTO}, {', '.join(DTYPES)}")
    return value


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) < 2**31:
        raise ValueError(f"{value!r} is not a whole number from 1")
    return int(value)


def _threads(value: str) -> int:
    threads = _count(value)
    if threads > MOST_THREADS:
        raise ValueError(f"{threads} are too many: use as many as there are processors, at most {MOST_THREADS}")
    return threads


def _count_or_zero(value: str) -> int:
    return 0 if value == "0" else _count(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise ValueError(f"{value!r} is not a number of seconds from 0")
    return seconds


def _pause(value: str) -> float:
    if _seconds(value) < 0.01:
        raise ValueError(f"{value!r} is too short: use 0.01 or more")
    return _seconds(value)


def _port(value: str) -> int:
    port = _count_or_zero(value)
    if port > 65535:
        raise ValueError(f"{value!r} is not a port: use 0 to 65535, 0 for any that is free")
    return port


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError(f"{value!r} is neither 0 nor 1")
    return value == "1"


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not known: use one of {', '.join(names)}")
        return value

    return parse


_PARSERS: Mapping[str, Callable[[str], object]] = {"dtype": _dtype, "threads": _threads}
_ENGINE_KEYS: Mapping[str, Callable[[str], object]] = {
    each.name: _PARSERS.get(each.name, _text if each.type is str else _count)
    for each in fields(EngineConfig)
    if each.name in SETTINGS
}


class ShadowSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of one variant's answers is compared with those of another one."""

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]


class TrafficSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the requests that name only a model are divided: a table `[traffic.NAME]` of the file."""

    weights: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1e9)]] = {}
    shadow: ShadowSetting | None = None


def _option(default: Any, parse: Callable[[str], object], help_text: str, *, live: bool = True) -> Any:
    """`live`: whether it may change while the server runs."""
    return field(default=default, metadata={"parse": parse, "help": help_text, "live": live})


@dataclass(kw_only=True)
class Settings:
    """All settings of a server. Each field is a flag (`--max-queue`) and a variable (`NASH_SERVER_MAX_QUEUE`).
    `models` is the repeatable flag `--model`; the store's variable is NASH_STORE. `traffic` stands in the file alone.
    """

    models: tuple[ModelRequest, ...]
    traffic: dict[str, TrafficSetting] = field(default_factory=dict)  # by model
    store: str = _option("store", str, "the model store: a folder, or s3://BUCKET/PREFIX", live=False)
    host: str = _option("127.0.0.1", _text, "address to listen on", live=False)
    port: int = _option(8000, _port, "port to listen on, 0 for any that is free", live=False)
    api_keys: Path | None = _option(
        None, Path, "file of key hashes, a line each: SCOPE SHA256 [LIMITS] [NAME]; read again when changed", live=False
    )
    allow_unauthenticated: bool = _option(
        False, _flag, "serve without keys beyond this machine, and answer to any Host and Origin", live=False
    )
    log_format: str = _option("text", _one_of(*FORMATS), "text: lines; json: one object a line", live=False)
    log_level: str = _option("info", _one_of(*LEVELS), "the least that is told: debug, info, warning, error")
    access_log: bool = _option(False, _flag, "tell every request in the log, never its text")
    max_connections: int = _option(1000, _count, "most open connections; idle ones make room for new ones")
    max_header_bytes: int = _option(64 * 1024, _count, "most bytes of a request line with its headers")
    header_s: float = _option(10.0, _pause, "time for a request line with its headers to arrive")
    transfer_s: float = _option(30.0, _pause, "time for a body to arrive, and for a client to take in an answer")
    max_body_bytes: int = _option(1024 * 1024, _count, "longest request body")
    max_bodies_bytes: int = _option(64 * 1024 * 1024, _count, "most bytes of bodies that are still arriving, together")
    max_batch_items: int = _option(64, _count, "most texts in one request")
    max_reported_tokens: int = _option(20_000, _count, "most tokens that the details of an answer could have")
    max_pieces: int = _option(256, _count, "most pieces that the texts of one request are split into")
    max_queue: int = _option(
        2048, _count_or_zero, "most rows of a variant that wait for slots: a text has one for each beam or sample"
    )
    max_queue_tokens: int = _option(
        2**20, _count, "most tokens of a variant that wait or run: of texts, and of answers by max_new_tokens"
    )
    queue_s: float = _option(30.0, _seconds, "longest time that a generation waits for a slot")
    total_s: float = _option(120.0, _seconds, "longest time that a request takes in all")
    keep_alive_s: float = _option(10.0, _pause, "silence in a stream after which a comment is sent")
    drain_s: float = _option(2.5, _seconds, "time that running requests get to finish when the server is stopped")
    cache_bytes: int = _option(
        0, _count_or_zero, "memory of each variant for answers that equal requests get again; 0: none is kept"
    )
    source_cache_bytes: int = _option(
        0,
        _count_or_zero,
        "memory of each variant for encoded sources that other requests read again; 0: none",
        live=False,
    )
    memory_bytes: int = _option(0, _count_or_zero, "most memory of all models together; 0: what the machine has")
    follow_s: float = _option(0.0, _seconds, "time between looks at the aliases, to serve what they name now; 0: never")
    idle_s: float = _option(
        0.0, _seconds, "time without a request after which a model is unloaded until the next one; 0: never"
    )
    watchdog_s: float = _option(30.0, _pause, "time in which a worker must answer between two steps, or it is ended")
    restart_s: float = _option(0.5, _pause, "first pause before a dead worker is restarted; doubles up to 30 s")

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingsError("no model to serve: give --model REF, once for each variant")
        if not (self.is_loopback or self.api_keys or self.allow_unauthenticated):
            raise SettingsError(
                f"--host {self.host} can be reached from other machines: give --api-keys FILE, "
                "or --allow-unauthenticated to serve everybody, or use --host 127.0.0.1"
            )

    def take_up(self, wanted: "Settings") -> list[str]:
        """Change to what is wanted, models and traffic aside; those that may not change while it serves stay.

        Returns what has changed, in words.
        """
        changed = []
        for name in live_options():
            before, now = getattr(self, name), getattr(wanted, name)
            if before != now:
                setattr(self, name, now)
                changed.append(f"{name} {before} -> {now}")
        return changed

    def fixed_differences(self, wanted: "Settings") -> list[str]:
        """What is wanted otherwise and cannot change while the server runs, in words."""
        fixed = [each.name for each in fields(self) if each.metadata.get("live") is False]
        pairs = ((name, getattr(self, name), getattr(wanted, name)) for name in fixed)
        return [f"{name} stays {before}, not {now}" for name, before, now in pairs if before != now]

    @property
    def is_loopback(self) -> bool:
        """Whether the address can be reached only from this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a host name can resolve to any address, whatever it begins with


def live_options() -> list[str]:
    """The names of the options that may change while the server runs."""
    return [each.name for each in fields(Settings) if each.metadata.get("live")]


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises one-line errors for the caller to print."""

    def error(self, message: str) -> Any:
        raise SettingsError(f"{message}: see {self.prog} --help")


def parse_settings(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, *, cores: int | None = None
) -> Settings:
    """Read the settings from a command line and the environment.

    `cores` defaults to the number that this process may use.

    Raises:
        SettingsError: an unknown flag or variable, an invalid value, or an unsafe combination.
    """
    environment = os.environ if environment is None else environment
    options = {option.name: option for option in fields(Settings) if option.metadata}
    parser = _Parser(prog="python -m server", description="Serve models of the store over HTTP.", allow_abbrev=False)
    parser.add_argument("--model", action="append", dest="models", metavar="REF[,key=value...]", help=_MODEL_HELP)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML: these settings, and models = [REF, ...]")
    for name, option in options.items():
        flag = "--" + name.replace("_", "-")
        help_text = f"{option.metadata['help']} (default: {option.default})"
        if option.default is False:
            parser.add_argument(flag, action="store_const", const="1", dest=name, help=help_text)
        else:
            parser.add_argument(flag, dest=name, help=help_text)
    flags = vars(parser.parse_args(arguments))
    file = flags.pop("config")
    table = {} if file is None else _table(file)
    traffic = _traffic(file, table.pop("traffic", {}))
    chosen = _from_table(file, table, options) | _from_environment(environment, options)
    for name, value in flags.items():
        if value is not None:
            chosen[name] = ("--" + name.replace("_", "-"), value)
    _, models = chosen.pop("models", ("", []))
    values: dict[str, Any] = {}
    for name, (origin, text) in chosen.items():
        try:
            values[name] = options[name].metadata["parse"](text)
        except ValueError as error:
            raise SettingsError(f"{origin}: {error}") from error
    requests = with_threads([ModelRequest.parse(model) for model in models], cores)
    return Settings(models=requests, traffic=traffic, **values)


def config_file(arguments: Sequence[str]) -> Path | None:
    """The file that a command line names, which may be read again.

    Raises:
        SettingsError: `--config` has no value.
    """
    parser = _Parser(prog="python -m server", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    found: Path | None = parser.parse_known_args(arguments)[0].config
    return found


def with_threads(
    requests: Sequence[ModelRequest], cores: int | None, pools: int | None = None
) -> tuple[ModelRequest, ...]:
    """Give every model that sets no thread count its share of the cores, which so many `pools` share.

    If there are more threads than cores, they wait for each other at the end of every operation: on two cores, two
    small models with two threads each answer several times slower than with one each.

    Raises:
        SettingsError: a model asks for more threads than there are cores.
    """
    usable, pools = cores or usable_cpus(), pools or max(1, len(requests))
    for request in requests:
        if (request.engine.threads or 0) > usable:
            raise SettingsError(
                f"model {request.ref!r}: threads={request.engine.threads}, but this process may use "
                f"{share_of_the_machine()}: give at most {usable}"
            )
    share = default_threads(usable, pools=pools) if cores is None else max(1, cores // pools)
    return tuple(
        request if request.engine.threads else replace(request, engine=replace(request.engine, threads=share))
        for request in requests
    )


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path} is not valid TOML: {error}") from error


def _traffic(path: Path | None, tables: object) -> dict[str, TrafficSetting]:
    try:
        return msgspec.convert(tables, dict[str, TrafficSetting])
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"{path}, traffic: {error}: write [traffic.NAME] with weights = {{ VARIANT = SHARE }} and, "
            "if wanted, shadow = { from = VARIANT, to = VARIANT, fraction = 0.1 }"
        ) from error


def _from_table(path: Path | None, table: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """For each field, where the file sets it and its value as text; models as a list."""
    chosen: dict[str, tuple[str, Any]] = {}
    for name, value in table.items():
        if name == "models":
            if not isinstance(value, list) or not all(isinstance(model, str) for model in value):
                raise SettingsError(f'{path}: models is {value!r}: write a list, as in ["g2p@dense", "g2p@pruned"]')
            chosen[name] = (str(path), value)
        elif name not in options:
            raise SettingsError(f"{path}: {name} is not a setting: use models, traffic, {', '.join(options)}")
        elif isinstance(value, bool):
            chosen[name] = (f"{path}, {name}", "1" if value else "0")
        elif isinstance(value, str | int | float):
            chosen[name] = (f"{path}, {name}", str(value))
        else:
            raise SettingsError(f"{path}: {name} is {value!r}: write a text, a number, true or false")
    return chosen


def _from_environment(environment: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """For each field, the name of its variable and the variable's text."""
    chosen: dict[str, tuple[str, Any]] = {}
    if environment.get(STORE_VARIABLE):
        chosen["store"] = (STORE_VARIABLE, environment[STORE_VARIABLE])
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name == "models":
            chosen[name] = (variable, environment[variable].split())
        elif name in options and name != "store":
            chosen[name] = (variable, environment[variable])
        else:
            raise SettingsError(f"{variable} is not a setting: unset it, or use one such as {ENVIRONMENT_PREFIX}PORT")
    return chosen
