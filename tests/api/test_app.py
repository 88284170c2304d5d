"""The application as another host would run it, without a server process."""

import asyncio
from pathlib import Path

import httpx
import pytest

from server.api.app import create_app, create_app_over
from server.engine.interface.config import EngineConfig
from server.frontend.service import Service
from server.settings import ModelRequest, Settings
from tests.running_server import publish_tiny_models

HOST = "http://127.0.0.1"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    store = publish_tiny_models(tmp_path_factory.mktemp("served"))
    return Settings(models=(ModelRequest(ref="tiny@dense", engine=EngineConfig(threads=1)),), store=str(store))


def test_before_its_models_are_loaded_it_lives_and_is_not_ready(settings: Settings) -> None:
    async def scenario() -> None:
        app = create_app_over(Service(settings), starts_service=False)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOST) as client:
            assert (await client.get("/health")).status_code == 200
            ready = await client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json() == {"ready": False, "models": [{"ref": "tiny@dense", "state": "loading"}]}
            for path in ("/generate", "/generate_stream", "/compare"):
                refused = await client.post(path, json={"inputs": "a"})
                assert (refused.status_code, refused.json()["error_type"]) == (503, "unavailable")
                assert int(refused.headers["retry-after"]) >= 1
            (model,) = (await client.get("/models")).json()
            assert (model["state"], model["memory_bytes"]) == ("loading", None)

    asyncio.run(scenario())


def test_its_lifespan_starts_and_stops_the_workers(settings: Settings) -> None:
    async def scenario() -> None:
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOST) as client,
        ):
            assert (await client.get("/health/ready")).status_code == 200
            assert (await client.post("/generate", json={"inputs": "hello"})).json()["ref"] == "tiny@dense"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOST) as client:
            assert (await client.post("/generate", json={"inputs": "hello"})).status_code == 503

    asyncio.run(scenario())


def test_a_fault_of_ours_tells_callers_nothing_of_our_insides(settings: Settings, tmp_path: Path) -> None:
    async def scenario() -> None:
        app = create_app_over(Service(settings), starts_service=False)

        @app.get("/fault")
        async def fault() -> None:
            raise RuntimeError("a secret")

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
            response = await client.get("/fault")
        assert response.status_code == 500
        assert "secret" not in response.text
        assert set(response.json()) == {"error", "error_type"}

    asyncio.run(scenario())
