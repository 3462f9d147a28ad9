# One image for all stages: `docker run IMAGE STAGE`.
#
# BASE_IMAGE is any Debian with python3.11. It is named by tag here; a release build passes it by digest.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements.txt ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-deps --require-hashes -r requirements.txt
COPY contracts ./contracts
COPY pipeline ./pipeline
COPY apps ./apps
COPY pyproject.toml ./
# What `pip install` would note of the package, without the tools that build one: the version is read from there.
RUN /opt/venv/bin/python -c "import pathlib, tomllib; project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
name, version = project['name'], project['version']; \
folder = pathlib.Path(name.replace('-', '_') + f'-{version}.dist-info'); folder.mkdir(); \
(folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')" \
    && rm pyproject.toml
# Byte code, since nothing can be written later. Loops are compiled for any x86-64 or arm64, not for the
# builder's processor, so that what is compiled here is taken everywhere, and scores are the same to the last digit.
ENV PYTHONPATH=/app NUMBA_CPU_NAME=generic NUMBA_CACHE_DIR=/opt/numba
RUN /opt/venv/bin/python -m compileall -q /app \
    && /opt/venv/bin/python -m apps.compile
COPY deploy/image/pipeline /opt/venv/bin/pipeline

#checkov:skip=CKV_DOCKER_7:the tag is in BASE_IMAGE
FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="iot-stream-pipeline" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/numba /opt/numba
COPY --from=build /app /app
# In a container each stage has the port to itself, so that probes and scrapes find all of them at the same one.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    NUMBA_CPU_NAME=generic \
    NUMBA_CACHE_DIR=/tmp/numba \
    PIPELINE_OBSERVABILITY__HOST=0.0.0.0 \
    PIPELINE_OBSERVABILITY__PORT=9100 \
    PIPELINE_OBSERVABILITY__LOG_FORMAT=json \
    PIPELINE_STATE_DIR=/state
RUN mkdir /state && chown 10001:10001 /state
VOLUME ["/state", "/tmp"]
USER 10001:10001
EXPOSE 9100 5006
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9100/healthz', timeout=4)"]
ENTRYPOINT ["pipeline"]
CMD ["--help"]
