# One file, three images: `web` (slim, no torch), `worker` (CPU) and `worker-gpu`. The two workers
# differ in their build of torch, nothing else.
#   docker build --target web -t alignment-studio-web .
#   docker build --target worker -t alignment-studio-worker .
#   docker build --target worker-gpu -t alignment-studio-worker-gpu .

FROM node:24-bookworm-slim AS frontend
WORKDIR /frontend
COPY frontend/package.json frontend/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY frontend/ ./
RUN node build.mjs

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 STUDIO_HOME=/var/lib/studio
RUN useradd --system --uid 10001 --home-dir /var/lib/studio --create-home studio
WORKDIR /app
# Dependencies first: a change of the sources does not install them again. The packages' own places stay empty for that.
COPY pyproject.toml constraints.txt ./
RUN mkdir backend worker && touch backend/__init__.py worker/__init__.py

FROM base AS web
RUN pip install --constraint constraints.txt --editable ".[backend,s3]"
COPY backend/ backend/
COPY migrations/ migrations/
# Sources only: exported scripts carry functions of the worker with them.
COPY worker/ worker/
COPY frontend/templates/ frontend/templates/
COPY --from=frontend /frontend/dist/ frontend/dist/
USER studio
EXPOSE 8400
CMD ["uvicorn", "--factory", "backend.app:create", "--host", "0.0.0.0", "--port", "8400", "--timeout-graceful-shutdown", "3", "--no-access-log"]

FROM base AS worker
RUN pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
 && pip install --constraint constraints.txt --editable ".[worker,s3]"
COPY backend/ backend/
COPY worker/ worker/
USER studio
CMD ["celery", "-A", "worker.app", "worker", "-Q", "runs", "-c", "1", "-n", "runs@%h", "-l", "info", "--without-gossip", "--without-mingle"]

# PyPI's torch for Linux brings its CUDA libraries; the host needs only NVIDIA's driver and container toolkit.
FROM base AS worker-gpu
RUN pip install --constraint constraints.txt torch==2.13.0 \
 && pip install --constraint constraints.txt --editable ".[worker,s3]"
COPY backend/ backend/
COPY worker/ worker/
USER studio
CMD ["celery", "-A", "worker.app", "worker", "-Q", "runs", "-c", "1", "-n", "runs@%h", "-l", "info", "--without-gossip", "--without-mingle"]
