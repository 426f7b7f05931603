# The worker. From the repository's root:
#   docker build -f deploy/worker.Dockerfile -t fedpft-worker .
# The stages up to "runtime" are the same in both Dockerfiles, so that both images share their layers.

# What we depend on, alone: the layer below is built anew only when this list changes.
FROM docker.io/library/python:3.11-slim-bookworm AS dependencies
COPY pyproject.toml .
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      o = p['optional-dependencies']; \
      print(*p['dependencies'], *o['privacy'], *o['tracing'], sep='\n')" > /requirements.txt

FROM docker.io/library/python:3.11-slim-bookworm AS packages
# Another index to look for torch in: without it the default index serves torch with CUDA. An index of
# torch for the CPU makes the image smaller by several gigabytes.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/source/constraints.txt
WORKDIR /source
COPY constraints.txt ./
COPY --from=dependencies /requirements.txt ./
# And the first process of a container: it passes signals on from its first moment, and takes in who is left
# behind, with every engine alike. Without libraries' headers, static libraries and tests, which nothing at run
# time reads.
RUN python -m venv --without-pip /opt/fedpft \
 && python -m pip --python /opt/fedpft/bin/python install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      --requirement requirements.txt dumb-init==1.2.5.post1 \
 && cd /opt/fedpft/lib/python3.11/site-packages \
 && rm -rf torch/include torch/share/cmake torch/test pyarrow/include pyarrow/src numpy/_core/include \
 && find . -name '*.a' -delete \
 && find . -type d -name tests -not -path './torch/*' -prune -exec rm -rf {} +

FROM packages AS build
COPY . .
# Apart from the packages, so that a change of our code is a small layer.
RUN python -m pip wheel --no-deps --wheel-dir /wheels . \
 && python -m pip --python /opt/fedpft/bin/python install --no-deps --prefix /ours /wheels/*.whl

FROM docker.io/library/python:3.11-slim-bookworm AS runtime
# The root file system may be read-only: what is written goes to /data, a volume, and to /tmp.
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin fedpft \
 && install -d -o fedpft -g fedpft /data /private /tls /etc/fedpft
COPY --from=packages /opt/fedpft /opt/fedpft
COPY --from=build /ours /opt/fedpft
ENV PATH=/opt/fedpft/bin:$PATH \
    HOME=/data \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false
USER 10001
WORKDIR /data
VOLUME /data

FROM runtime AS worker
EXPOSE 7072
# A worker listens nowhere else than on its metrics endpoint.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["fedpft-health", "http://127.0.0.1:7072/metrics"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["dumb-init", "--", "fedpft-worker", "--metrics", "0.0.0.0:7072", "--folder", "/data/cache"]
