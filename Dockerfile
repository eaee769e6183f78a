# One image for every service. VARIANT=cpu (default) or cuda:
#
#     docker build -t talaria:cpu .
#     docker build -t talaria:cuda --build-arg VARIANT=cuda .
#
# `--build-arg GIT_COMMIT=$(git rev-parse HEAD)` puts the commit on every model version that the image makes.
FROM python:3.11-slim-bookworm

ARG VARIANT=cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl tini gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 50000 --create-home --home-dir /opt/airflow airflow \
    && mkdir -p /var/log/airflow /var/lib/talaria && chown airflow /var/log/airflow /var/lib/talaria

WORKDIR /opt/talaria
# The lock first: this layer is built again only when a dependency changes.
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN mkdir -p pipeline/talaria plugins/talaria_airflow configs \
    && touch pipeline/talaria/__init__.py plugins/talaria_airflow/__init__.py \
    && index=$([ "$VARIANT" = cpu ] && echo "--extra-index-url https://download.pytorch.org/whl/cpu" || true) \
    && extras=$([ "$VARIANT" = cuda ] && echo ",gpu" || true) \
    && pip install --no-cache-dir $index -c requirements.lock -e ".[train,airflow,production$extras]"
COPY . .

ARG GIT_COMMIT=
ENV TALARIA_GIT_COMMIT=$GIT_COMMIT
ENV PATH=/opt/talaria/deploy:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER airflow
ENTRYPOINT ["tini", "-g", "--"]
