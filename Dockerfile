# A small image of dsv4-shard: no CUDA, and no torch, which `verify --numerics` alone needs. docs/how-to/kubernetes.md
# uses it. `make image` builds it, or checks it where nothing can build it.
ARG BASE=python:3.13.15-slim-trixie

FROM ${BASE} AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tools/requirements.py tools/
COPY dsv4_shard dsv4_shard
RUN python -m venv /opt/dsv4-shard \
 && python tools/requirements.py --without torch > requirements.txt \
 && /opt/dsv4-shard/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
 && /opt/dsv4-shard/bin/pip install --no-cache-dir --no-deps .

FROM ${BASE}
COPY --from=build /opt/dsv4-shard /opt/dsv4-shard
# Any user id works: the home folder, which holds the caches, is the only one that is written outside of mounts.
RUN useradd --uid 10001 --create-home dsv4-shard && chmod 1777 /home/dsv4-shard
ENV PATH=/opt/dsv4-shard/bin:$PATH HOME=/home/dsv4-shard
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["dsv4-shard"]
CMD ["--help"]
