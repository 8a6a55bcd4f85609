# Every module's image. `scripts/build-images` calls it; by hand:
#   docker build -f Dockerfiles/module.Dockerfile --target capture --build-arg LOCK=capture -t skerry-capture .
#
# BASE     what runs: Python 3.11 or later and glibc; nothing is installed into it
# BUILDER  what builds: the same Python with pip, and `strip` where sizes matter; no layer of it stays
# LOCK     the file in requirements/ that says which wheels go in
# WITHOUT  distributions of the lock that BASE brings itself, e.g. numpy on Jetson
# MACHINE  what wheels call the architecture of the image, e.g. aarch64, where it is not that of BUILDER: the wheels are
#          chosen by name and unpacked, so next to nothing is emulated
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG BUILDER=docker.io/library/python:3.11-bookworm

FROM --platform=${BUILDPLATFORM} ${BUILDER} AS wheels
ARG LOCK
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1 \
    PYTHONHASHSEED=0
WORKDIR /build
# `ca` is the certificate of a proxy that opens TLS, where there is one; it is in no layer.
COPY requirements/build.txt requirements/${LOCK}.txt requirements/
ARG MACHINE=
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/pip \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3 -m pip install --quiet --require-hashes --no-deps --target /build/tools -r requirements/build.txt && \
    platforms=; if [ -n "${MACHINE}" ]; then \
        for glibc in $(seq 17 36); do platforms="$platforms --platform manylinux_2_${glibc}_${MACHINE}"; done; fi && \
    PYTHONPATH=/build/tools python3 -m pip install --quiet --require-hashes --no-deps --no-build-isolation \
        --target /build/wheels/opt/skerry $platforms -r requirements/${LOCK}.txt
COPY scripts/assemble ./
ARG WITHOUT=
RUN python3 assemble wheels wheels --without "${WITHOUT}" --machine "${MACHINE}"

FROM wheels AS code
# Again: BuildKit hands an argument down to the next stage, buildah does not.
ARG LOCK
ARG SOURCE_DATE_EPOCH=0
COPY pyproject.toml README.md LICENSE ./
COPY modules modules
RUN PYTHONPATH=/build/tools python3 -m pip install --quiet --no-deps --no-build-isolation --no-index \
        --target /build/code/opt/skerry . && \
    python3 assemble code code --beside wheels --name "skerry-${LOCK}" --epoch ${SOURCE_DATE_EPOCH}

FROM ${BASE} AS common
# A Python image of others has pip in it, which has no business on a device.
RUN ["python3", "-c", "import glob, os, shutil, sysconfig\nfor place in {sysconfig.get_path('purelib'), sysconfig.get_path('stdlib')}:\n    for name in ('pip', 'pip-*', 'setuptools', 'setuptools-*', 'wheel', 'wheel-*', 'pkg_resources', '_distutils_hack', 'ensurepip'):\n        for path in glob.glob(os.path.join(place, name)):\n            shutil.rmtree(path)\n"]
COPY --from=wheels /build/wheels /
ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Skerry" \
      org.opencontainers.image.description="Camera AI at the edge that loses nothing when the link drops" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=code /build/code /
# ONNX Runtime's wheels report to their makers unless told not to; nobody but the uplink talks to the outside.
ENV PYTHONPATH=/opt/skerry PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /var/lib/skerry
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-m", "skerry.healthcheck"]

FROM common AS capture
ENTRYPOINT ["python3", "-m", "skerry.capture"]

FROM common AS inference
ENTRYPOINT ["python3", "-m", "skerry.inference"]

FROM common AS inference-gpu
# Where the wheels of NVIDIA's libraries are, if the lock has them; a base that has its own names them itself.
ENV LD_LIBRARY_PATH=/opt/skerry/nvidia/cu13/lib:/opt/skerry/nvidia/cudnn/lib${LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH}}
ENTRYPOINT ["python3", "-m", "skerry.inference"]

FROM common AS decision
ENTRYPOINT ["python3", "-m", "skerry.decision"]

FROM common AS buffer
ENTRYPOINT ["python3", "-m", "skerry.buffer"]

FROM common AS uplink
ENTRYPOINT ["python3", "-m", "skerry.uplink"]

FROM common AS updater
ENTRYPOINT ["python3", "-m", "skerry.updater"]
