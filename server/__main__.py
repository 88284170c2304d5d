"""`python -m server`: the API process.

It listens and answers `/health` at once. When every model is loaded, `/health/ready` returns 200 and the address is
printed. SIGINT or SIGTERM drains the server and ends it with exit code 0; a second signal skips the drain. SIGHUP
reads the file of settings again; without a file it ends the server, as a closed terminal should.
"""

import asyncio
import contextlib
import json
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
import uvloop
from prometheus_client import disable_created_metrics

from model_store.errors import InvalidRequestError, ModelStoreError
from server.api.app import create_app_over
from server.api.http.protocol import BoundedHttpProtocol, ClientLimits, bounded_protocol
from server.errors import SettingsError, StartError
from server.frontend.reloading import reload
from server.frontend.service import Service
from server.settings import Settings, config_file, parse_settings
from server.telemetry import logs

# How long a connection may stay open after its request has ended, before it is cut: its client may read slowly.
_CLOSE_S = 1
_BACKLOG = 2048
_OTHER_DESCRIPTORS = 64  # of files, workers and what Python opens
_logger = logging.getLogger("server")


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which would end the process by the signal instead of with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Stop:
    """What signals have asked for."""

    def __init__(self, *, may_reload: bool) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()  # asked twice
        self.reload = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set if may_reload else self._on_signal)

    def _on_signal(self) -> None:
        (self.hurry if self.asked.is_set() else self.asked).set()


async def _serve(service: Service, listener: socket.socket, arguments: Sequence[str]) -> None:
    """Serve until a signal arrives.

    Raises:
        StartError: a model cannot be loaded.
    """
    stop = _Stop(may_reload=config_file(arguments) is not None)
    limits = ClientLimits(**_limits(service.settings))
    config = uvicorn.Config(
        create_app_over(service, starts_service=False),
        http=bounded_protocol(limits),  # type: ignore[arg-type] # it is called, and nothing more
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_CLOSE_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(service.start())
    asked = asyncio.create_task(stop.asked.wait())
    try:
        await asyncio.wait((starting, asked, serving), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            _announce(service, listener)
            reloading = asyncio.create_task(_reload_when_asked(service, stop, limits, arguments))
            await asyncio.wait((asked, serving), return_when=asyncio.FIRST_COMPLETED)
            reloading.cancel()
            service.draining = True
            for connection in list(server.server_state.connections):
                if isinstance(connection, BoundedHttpProtocol):
                    connection.refuse_unfinished()
            await _drain(service, stop)
    finally:
        starting.cancel()
        asked.cancel()
        await service.stop()
        server.should_exit = True
        await serving


async def _reload_when_asked(service: Service, stop: _Stop, limits: ClientLimits, arguments: Sequence[str]) -> None:
    """Read the settings again at each SIGHUP; those that come meanwhile count as one. What is wrong changes nothing."""
    while True:
        await stop.reload.wait()
        stop.reload.clear()
        try:
            await reload(service, await asyncio.to_thread(parse_settings, arguments))
        except SettingsError as error:
            _logger.error("the settings stay as they were: %s", error)
            continue
        except Exception:
            _logger.exception("the settings could not all be taken up")
        logs.set_level(service.settings.log_level)
        vars(limits).update(_limits(service.settings))


def _announce(service: Service, listener: socket.socket) -> None:
    """Say on standard output that it serves, and where: in the logs' form, since they are often read as one."""
    message = f"serving {', '.join(variant.ref for variant in service.variants)} at {_address(listener)}"
    print(json.dumps({"message": message}) if service.settings.log_format == "json" else message, flush=True)


def _limits(settings: Settings) -> dict[str, Any]:
    """The fields of ClientLimits."""
    return {
        "max_header_bytes": settings.max_header_bytes,
        "max_connections": _connections(settings.max_connections),
        "header_s": settings.header_s,
        "transfer_s": settings.transfer_s,
    }


async def _drain(service: Service, stop: _Stop) -> None:
    """Wait for running requests, unless the operator is in a hurry."""
    draining, hurry = asyncio.create_task(service.drain()), asyncio.create_task(stop.hurry.wait())
    await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    hurry.cancel()


def _connections(wanted: int) -> int:
    """How many connections there are descriptors for, after asking the system for more if it grants them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = wanted + _OTHER_DESCRIPTORS
    needed = min(wanted + _OTHER_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        soft = needed
    if soft == resource.RLIM_INFINITY or soft >= wanted + _OTHER_DESCRIPTORS:
        return wanted
    most = max(1, soft - _OTHER_DESCRIPTORS)
    _logger.warning("at most %d connections: the limit of open files is %d", most, soft)
    return most


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise StartError(f"cannot listen on {host}, port {port}: {error.strerror}: choose another one") from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def main() -> int:
    """Run the server. Returns 0 after a signal, 1 if it could not start, 2 if its settings or models are invalid."""
    disable_created_metrics()  # type: ignore[no-untyped-call] # a timestamp per series, which nobody uses
    logs.configure("text", "info")  # until the settings are known
    try:
        settings = parse_settings(sys.argv[1:])
        logs.configure(settings.log_format, settings.log_level)
        service = Service(settings)
        with (
            _listen(settings.host, settings.port) as listener,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_serve(service, listener, sys.argv[1:]))
    except (SettingsError, InvalidRequestError) as error:
        logs.say_error(str(error))
        return 2
    except (StartError, ModelStoreError) as error:
        logs.say_error(str(error))
        return 1
    except KeyboardInterrupt:  # before the loop took over the signals
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
