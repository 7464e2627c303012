# Omni-R1 Studio in a container: docker build -t omni-r1-studio .
# The CPU build of torch by default; for another one name its index:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t omni-r1-studio .
# The container listens for everybody it is published to, so it wants OMNI_R1_API_KEY and does not start without one.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Optional parts of the studio; with `ray`, its engines can run on a Ray cluster.
ARG EXTRAS=otel,postgres,store,train
# For `omni-r1 --version`: --build-arg COMMIT=$(git rev-parse HEAD)
ARG COMMIT=unknown

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /srv/omni-r1

# The packages first: they change less often than the sources, and take minutes.
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
RUN mkdir app model training \
 && pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt -e ".[$EXTRAS]"

COPY app app
COPY model model
COPY training training
COPY static static
COPY containers/start /usr/local/bin/omni-r1-start
RUN echo "$COMMIT" >model/commit.txt \
 && pip install --no-deps -e . \
 && python -m compileall -q app model training \
 && useradd --uid 10001 --gid 0 --no-create-home --home-dir /data --shell /usr/sbin/nologin omni \
 && install -d -m 770 -o 10001 -g 0 /data

ENV HOME=/data \
    OMNI_R1_HOME=/data \
    OMNI_R1_HOST=0.0.0.0 \
    OMNI_R1_PORT=7860

# By number, so that Kubernetes sees that it is not root. OpenShift takes another number, always with group 0: it may write
# /data, and nothing else.
USER 10001:0
VOLUME /data
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 7860, timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
CMD ["omni-r1-start"]
