from pathlib import Path

import pytest

from server.engine.interface.config import EngineConfig
from server.errors import SettingsError
from server.settings import ModelRequest, Settings, ShadowSetting, TrafficSetting, config_file, parse_settings

MODEL = ["--model", "g2p@dense"]


def test_defaults_and_order_of_models() -> None:
    settings = parse_settings([*MODEL, "--model", "g2p@pruned,dtype=bfloat16,threads=2"], {}, cores=2)
    assert settings == Settings(
        models=(
            ModelRequest(ref="g2p@dense", engine=EngineConfig(dtype="auto", threads=1, spare_slots=4)),
            ModelRequest(ref="g2p@pruned", engine=EngineConfig(dtype="bfloat16", threads=2, spare_slots=4)),
        )
    )
    assert (settings.host, settings.port, settings.store) == ("127.0.0.1", 8000, "store")


@pytest.mark.parametrize(("cores", "models", "threads"), [(1, 2, 1), (2, 1, 2), (2, 3, 1), (16, 3, 5)])
def test_models_share_the_cores(cores: int, models: int, threads: int) -> None:
    arguments = [argument for i in range(models) for argument in ("--model", f"g2p:{i + 1}")]
    settings = parse_settings(arguments, {}, cores=cores)
    assert [model.engine.threads for model in settings.models] == [threads] * models


def test_more_threads_than_this_process_may_use_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"^model 'a': threads=3, but this process may use .*: give at most 2$"):
        parse_settings(["--model", "a,threads=3"], {}, cores=2)


def test_every_engine_key_can_be_given() -> None:
    text = (
        "a,dtype=float64,device=cuda,backend=torch,graphs=off,quantization=bnb-nf4,threads=1,slots=2,"
        "max_source_tokens=3,max_new_tokens=4,max_encode_tokens=5"
    )
    assert ModelRequest.parse(text).engine == EngineConfig(
        dtype="float64",
        device="cuda",
        backend="torch",
        graphs="off",
        quantization="bnb-nf4",
        threads=1,
        slots=2,
        max_source_tokens=3,
        max_new_tokens=4,
        max_encode_tokens=5,
        spare_slots=1,
    )


def test_the_command_line_goes_before_the_environment() -> None:
    environment = {
        "NASH_STORE": "/models",
        "NASH_SERVER_PORT": "81",
        "NASH_SERVER_DRAIN_S": "0.5",
        "NASH_SERVER_ALLOW_UNAUTHENTICATED": "1",
        "NASH_SERVER_MODELS": "a b,slots=3",
        "NASH_REQUIRE_ALL": "1",
        "HOME": "/root",
    }
    settings = parse_settings(["--port", "82"], environment)
    assert (settings.port, settings.drain_s, settings.store) == (82, 0.5, "/models")
    assert settings.allow_unauthenticated
    assert [model.ref for model in settings.models] == ["a", "b"]
    assert [model.ref for model in parse_settings(MODEL, environment).models] == ["g2p@dense"]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "no model to serve: give --model REF"),
        (["--model", ""], {}, "has no name"),
        (["--model", "a,threads=1025"], {}, "threads=1025: 1025 are too many: use as many as there are processors"),
        (
            ["--model", "a,foo=1"],
            {},
            "'foo=1' is not known: use key=value with one of dtype, device, backend, graphs, ",
        ),
        (["--model", "a,slots"], {}, "'slots' is not known"),
        (["--model", "a,dtype=int3"], {}, "dtype=int3: there is no such dtype: use one of auto, float32, bfloat16, "),
        (["--model", "a,dtype=int8,dtype=int8"], {}, "dtype is given twice"),
        (["--model", "a,slots=0"], {}, "slots=0: '0' is not a whole number from 1"),
        (["--model", "a,slots=1,slots=2"], {}, "slots is given twice"),
        ([*MODEL, "--port", "70000"], {}, "--port: '70000' is not a port"),
        ([*MODEL, "--queue-s", "soon"], {}, "--queue-s: 'soon' is not a number of seconds"),
        ([*MODEL, "--queue-s", "nan"], {}, "--queue-s: 'nan' is not a number of seconds"),
        ([*MODEL, "--keep-alive-s", "0"], {}, "--keep-alive-s: '0' is too short"),
        ([*MODEL, "--prot", "1"], {}, "unrecognized arguments: --prot 1: see python -m server --help"),
        (MODEL, {"NASH_SERVER_PROT": "1"}, "NASH_SERVER_PROT is not a setting"),
        (MODEL, {"NASH_SERVER_PORT": "x"}, "NASH_SERVER_PORT: 'x' is not a whole number"),
        ([*MODEL, "--host", "0.0.0.0"], {}, "--host 0.0.0.0 can be reached from other machines: give --api-keys"),
        ([*MODEL, "--host", ""], {}, "--host: give a value"),
        ([*MODEL, "--log-format", "xml"], {}, "--log-format: 'xml' is not known: use one of text, json"),
        ([*MODEL, "--log-level", "INFO"], {}, "--log-level: 'INFO' is not known: use one of debug, info"),
    ],
)
def test_what_makes_no_sense_is_named(arguments: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(arguments, environment)
    assert message in str(caught.value)


@pytest.mark.parametrize("arguments", [["--allow-unauthenticated"], ["--api-keys", "keys.txt"]])
def test_other_machines_may_be_served_when_told_how(arguments: list[str]) -> None:
    assert parse_settings([*MODEL, "--host", "0.0.0.0", *arguments], {}).host == "0.0.0.0"
    assert not parse_settings([*MODEL, "--host", "::1"], {}).allow_unauthenticated


def test_a_file_says_what_flags_and_environment_do_not(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        'models = ["g2p@dense,threads=1", "g2p@pruned,threads=1"]\nport = 9001\nqueue_s = 1.5\nmax_queue = 7\n'
        "allow_unauthenticated = true\n"
    )
    settings = parse_settings(["--config", str(file), "--port", "9003"], {"NASH_SERVER_MAX_QUEUE": "8"})
    assert [model.ref for model in settings.models] == ["g2p@dense", "g2p@pruned"]
    assert (settings.port, settings.max_queue, settings.queue_s) == (9003, 8, 1.5)
    assert settings.allow_unauthenticated


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("prot = 1", "prot is not a setting"),
        ('models = "g2p"', "write a list"),
        ('port = "x"', "port"),
        ("port = [1]", "write a text, a number"),
        ("port = ", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=error):
        parse_settings([*MODEL, "--config", str(file)], {})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml cannot be read"):
        parse_settings([*MODEL, "--config", "nowhere.toml"], {})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("127.example.org", False)],
)
def test_only_an_address_is_loopback(host: str, loopback: bool) -> None:
    models = (ModelRequest(ref="a", engine=EngineConfig()),)
    assert Settings(models=models, host=host, allow_unauthenticated=True).is_loopback is loopback


def test_a_file_says_how_traffic_is_divided(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        "[traffic.g2p]\nweights = { dense = 90, pruned = 1.5 }\n"
        'shadow = { from = "dense", to = "pruned", fraction = 0.1 }\n[traffic.titles]\n'
    )
    settings = parse_settings([*MODEL, "--config", str(file)], {})
    assert settings.traffic == {
        "g2p": TrafficSetting(
            weights={"dense": 90, "pruned": 1.5}, shadow=ShadowSetting(source="dense", target="pruned", fraction=0.1)
        ),
        "titles": TrafficSetting(),
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("traffic = 1", "Expected `object`, got `int`"),
        ("[traffic.g2p]\nweight = {}", "unknown field `weight`"),
        ("[traffic.g2p]\nweights = { dense = -1 }", "Expected `float` >= 0.0"),
        ("[traffic.g2p]\nweights = { dense = nan }", "Expected"),
        ('[traffic.g2p]\nweights = { dense = "9" }', "Expected `float`, got `str`"),
        ('[traffic.g2p]\nshadow = { from = "a", to = "b", fraction = 2 }', "Expected `float` <= 1.0"),
        ('[traffic.g2p]\nshadow = { from = "a" }', "missing required field `to`"),
    ],
)
def test_traffic_that_makes_no_sense_is_refused_with_an_example(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        parse_settings([*MODEL, "--config", str(file)], {})
    assert error in str(caught.value)
    assert "server.toml, traffic: " in str(caught.value)
    assert "write [traffic.NAME] with weights = { VARIANT = SHARE }" in str(caught.value)


def test_what_may_change_is_taken_up_in_place_and_the_rest_named() -> None:
    settings = parse_settings(MODEL, {})
    wanted = parse_settings([*MODEL, "--max-queue", "7", "--port", "81", "--log-format", "json", "--access-log"], {})
    assert settings.take_up(wanted) == ["access_log False -> True", "max_queue 2048 -> 7"]
    assert (settings.max_queue, settings.access_log, settings.port, settings.log_format) == (7, True, 8000, "text")
    assert settings.fixed_differences(wanted) == ["port stays 8000, not 81", "log_format stays text, not json"]
    assert settings.take_up(wanted) == []


def test_only_a_file_can_be_read_again() -> None:
    assert config_file([*MODEL, "--max-queue", "7"]) is None
    assert config_file([*MODEL, "--config", "a.toml", "--port", "0"]) == Path("a.toml")
    assert config_file(["--config=b.toml"]) == Path("b.toml")
