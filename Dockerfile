# The image of every node of a cluster: Python, the third-party libraries, nightshift. See docs/cluster.md.
#   docker build -t nightshift .
#   docker build -t nightshift:cpu --build-arg TORCH_INDEX=URL .     a package index with builds of torch for CPUs only
# Without TORCH_INDEX torch brings its own CUDA libraries: the image runs on GPUs (with NVIDIA's container runtime) and on CPUs.
ARG PYTHON=3.11.14-slim-bookworm
FROM python:${PYTHON}

# KubeRay's probes call wget; ps is what Ray's dashboard shows processes with. No compilers: everything below is a wheel.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates procps wget \
    && rm -rf /var/lib/apt/lists/*

# Everything goes into the image's own Python below /usr/local/bin, which is on the PATH of login shells too.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The libraries first: they change seldom, and this layer is nearly all of the image.
ARG TORCH_INDEX=
WORKDIR /opt/build
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN mkdir jobs pipeline cluster \
    && if [ -n "$TORCH_INDEX" ]; then \
        grep -E '^(torch|torchvision)==' constraints.txt | xargs pip install --index-url "$TORCH_INDEX" --no-deps; fi \
    && pip install --only-binary :all: --constraint constraints.txt --compile '.[delta,tune]' \
    && pip uninstall --yes nightshift

COPY jobs jobs
COPY pipeline pipeline
COPY cluster cluster
RUN pip install --no-deps --compile . && rm -rf /opt/build

# Not root, with a home of its own: Ray writes below /tmp and ~.
RUN useradd --uid 1000 --create-home ray
USER 1000
WORKDIR /home/ray
CMD ["nightshift", "doctor"]
