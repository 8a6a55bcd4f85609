# The broker: Mosquitto as Debian packages it, on the same base as the modules, so that a device holds that once.
#
# BASE     a Debian with Python 3, which the health check and the entry point need
# PACKAGE  `mosquitto`, or with a version: `mosquitto=2.0.11-1.2+deb12u2`
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}
ARG PACKAGE=mosquitto
# `ca` is the certificate of a proxy that opens TLS, where there is one; it is in no layer.
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export CURL_CA_BUNDLE=/run/secrets/ca; fi; \
    apt-get -qq update && \
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends ${PACKAGE} > /dev/null && \
    apt-get clean && \
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache \
        /var/cache/debconf/* /var/lib/mosquitto /etc/mosquitto/conf.d
ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Skerry broker" \
      org.opencontainers.image.description="Mosquitto, the MQTT broker between the modules of a Skerry site" \
      org.opencontainers.image.licenses="EPL-2.0 OR BSD-3-Clause" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY modules/skerry/healthcheck.py modules/skerry/broker_entry.py /opt/skerry/
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 CMD ["python3", "/opt/skerry/healthcheck.py", "--mqtt", "1883"]
# Becomes Mosquitto: with /etc/skerry/mosquitto.conf, or with what SKERRY_BROKER_CONF and SKERRY_BROKER_ACL say.
ENTRYPOINT ["python3", "/opt/skerry/broker_entry.py"]
