# The server's image; `--target loadtest` builds that of Locust's page. Needs BuildKit, which Docker has had on since 23.
#
# TORCH_INDEX_URL: PyTorch's index of CPU wheels for a machine without a GPU, which saves gigabytes; left empty, torch
# comes from the default index, with CUDA on x86 Linux.

FROM python:3.11-slim-bookworm AS runtime
# HOME and TMPDIR are for a tmpfs: nothing else need be writable. Byte code is made when the packages are installed.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp TMPDIR=/tmp
# Libraries ask for the user's name.
RUN groupadd --gid 10001 nash \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nash
WORKDIR /app

# Not the slim one: it has the compiler that the engine's native operator needs.
FROM python:3.11-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# Without pip of its own: the image has no use for it.
RUN python -m venv --without-pip /opt/venv

FROM build AS loadtest-build
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    --mount=type=bind,source=constraints.txt,target=constraints.txt \
    python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["loadtest"], sep="\n")' > /tmp/requirements.txt \
    && pip --python /opt/venv/bin/python install -c constraints.txt -r /tmp/requirements.txt

FROM runtime AS loadtest
COPY --from=loadtest-build /opt/venv /opt/venv
COPY examples/g2p/workload.jsonl ./examples/g2p/workload.jsonl
COPY loadtest ./loadtest
# Why select: see loadtest/locustfile.py.
ENV PATH="/opt/venv/bin:$PATH" GEVENT_BACKEND=select NASH_LOADTEST_WORKLOAD=examples/g2p/workload.jsonl
EXPOSE 8089
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8089, timeout=3); c.request('GET', '/'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["locust", "--locustfile", "loadtest/locustfile.py", "--class-picker"]

FROM build AS server-build
ARG TORCH_INDEX_URL=""
# The dependencies before the sources: they change less often and take minutes.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    --mount=type=bind,source=constraints.txt,target=constraints.txt \
    if [ -n "$TORCH_INDEX_URL" ]; then \
        pip --python /opt/venv/bin/python install --index-url "$TORCH_INDEX_URL" --no-deps -c constraints.txt torch; \
    fi \
    && python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["otel"], *p["optional-dependencies"]["s3"], sep="\n")' > /tmp/requirements.txt \
    && pip --python /opt/venv/bin/python install -c constraints.txt -r /tmp/requirements.txt
COPY pyproject.toml setup.py README.md ./
COPY model_store ./model_store
COPY nash ./nash
COPY server ./server
RUN --mount=type=cache,target=/root/.cache/pip pip --python /opt/venv/bin/python install --no-deps .

# Last, so that a build without --target makes it.
FROM runtime AS server
COPY --from=server-build /opt/venv /opt/venv
# A volume that is mounted there belongs to the user who is to write it.
RUN install -d -o nash -g nash /cache
ENV PATH="/opt/venv/bin:$PATH" NASH_STORE=/store NASH_CACHE=/cache
EXPOSE 8000
USER 10001:10001
# Ready is when every model is loaded. Not through a proxy, whatever the environment says: hence no urllib.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('NASH_SERVER_PORT', '8000')), timeout=3); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "server"]
