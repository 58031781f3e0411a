# The command line of rllib_hypermarl, and a Ray node; docs/deploy.md says how to run it.
#
#   docker build -t hypermarl:cpu .
#   docker build -t hypermarl:cuda --build-arg COMPUTE=cuda .
#
# The image holds VMAS, which is GPLv3 (see NOTICE): whoever passes the image on has that licence to keep. To build
# without it, leave its line out of requirements.txt.

FROM python:3.11.14-slim-bookworm AS wheel
WORKDIR /src
COPY requirements.txt ./
RUN pip install --no-cache-dir "$(grep '^setuptools==' requirements.txt)"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY envs envs
COPY rllib_hypermarl rllib_hypermarl
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .


FROM python:3.11.14-slim-bookworm
ARG COMPUTE=cpu

# tini reaps what Ray leaves behind and passes signals on. wget is for the probes of KubeRay, which its older versions
# cannot do without. `ray up` copies files into containers with rsync, and its head node reaches the others by ssh.
# No versions: Debian drops old builds of a package, so that a Dockerfile that pins them soon fails.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync tini wget \
    && rm -rf /var/lib/apt/lists/*

# Everything goes to /usr/local: login shells, which `ray up` uses, forget a PATH that is set here. torch is first, so that
# what needs it does not pull in another build: from PyPI it brings its own CUDA.
COPY requirements.txt /opt/hypermarl/
RUN case "$COMPUTE" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        cuda) index=https://pypi.org/simple ;; \
        *) echo "COMPUTE is cpu or cuda, not $COMPUTE" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --index-url "$index" "$(grep '^torch==' /opt/hypermarl/requirements.txt)" \
    && sed '/^# development/,$d' /opt/hypermarl/requirements.txt > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl
COPY deploy/entrypoint.sh /usr/local/bin/hypermarl-entrypoint

# Ray writes ~/.ray/auth_token; runs without --out land in ./runs.
RUN useradd --create-home --uid 1000 --user-group --shell /bin/bash ray \
    && install --directory --owner ray --group ray /runs \
    && ln -s /runs /home/ray/runs
USER 1000:1000
ENV HOME=/home/ray PYTHONUNBUFFERED=1
WORKDIR /home/ray
COPY tune_configs tune_configs
VOLUME /runs

# Without this, `ray start` with no token would start a cluster that anybody may use; with it, it refuses to start.
ENV RAY_AUTH_MODE=token

# Training runs a Ray cluster of its own, so this is healthy for both uses; kubelets do not look at it.
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s CMD ["ray", "health-check"]
ENTRYPOINT ["tini", "--", "hypermarl-entrypoint"]
CMD ["--help"]
