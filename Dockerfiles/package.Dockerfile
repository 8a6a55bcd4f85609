# A model package as an image, for platforms whose containers get files only from images (k3s, IoT Edge): it copies the
# package into a folder of a volume, and ends. `scripts/build-images --package models/parts` calls it; the context is a
# folder with `package/`, `put-package` and an empty `models/` in it.
#
#   docker run --rm -v models:/models skerry-package-parts:0.1.0 /models/parts
#
# BASE     a Python 3; the modules' own, so that a device holds it once
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}
COPY put-package /opt/skerry/put-package
COPY package /package
# A fresh named volume takes its owner from here.
COPY --chown=10001:10001 models /models
ARG NAME=unknown
ARG LICENCE=
ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Skerry model package ${NAME}" \
      org.opencontainers.image.description="Copies a model package into the folder that it is given" \
      org.opencontainers.image.licenses="${LICENCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
ENV PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "/opt/skerry/put-package"]
