"""Who may say and hear what on a secured bus: from a plan to Mosquitto's access rules and configuration.

The name that a broker knows somebody by is the common name of their certificate. Every module has one of its
own, which is its name on the bus; what it may write and read is made of `skerry.channels` and of what the
module is told: its cameras, its link. No module's rules have a wildcard in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from skerry.broker import MOSQUITTO_LIMITS
from skerry.buffer.settings import BufferSettings
from skerry.capture.settings import CaptureSettings
from skerry.channels import CHANNELS, EVENTS, Channel, Kind, Whose
from skerry.decision.settings import DecisionSettings
from skerry.deploy.plan import CA_FILE, CERTIFICATE_FILE, KEY_FILE, Part, Plan
from skerry.errors import ConfigError
from skerry.inference.settings import InferenceSettings
from skerry.uplink.settings import UplinkSettings

BROKER = "broker"
READERS = ("observer", "operator")
"""Who reads everything and writes nothing: the screens of the command line, and people."""
SECURE_PORT = 8883
ACL_FILE, CONFIGURATION_FILE = "acl", "mosquitto.conf"

GENERATED = "# Written by skerry from the site's modules and cameras; a change is overwritten.\n"


class Grants(msgspec.Struct, frozen=True, kw_only=True):
    """The topics that somebody may publish to, and have delivered."""

    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def identities(plan: Plan) -> tuple[str, ...]:
    """Everybody who needs a certificate: the modules in the order of the data's flow, broker, readers.

    Raises:
        ConfigError: two of them have one name.
    """
    names = [*(part.module for part in plan.parts), BROKER, *READERS]
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        raise ConfigError(
            [f"$.captures.{name}: expected a name that nobody else has, got {name!r}" for name in again]
        )
    return tuple(names)


def grants(plan: Plan) -> dict[str, Grants]:
    """What each identity may do, but for the broker, which asks nobody.

    Raises:
        ConfigError: see `identities`.
    """
    identities(plan)
    found = {
        part.module: Grants(
            writes=tuple(_topics(plan, part, "writers")), reads=tuple(_topics(plan, part, "readers"))
        )
        for part in plan.parts
    }
    return found | {name: Grants(reads=(f"skerry/{plan.site}/#",)) for name in READERS}


def acl(plan: Plan) -> str:
    """The content of Mosquitto's `acl_file`. Who is not in it may do nothing.

    Source: mosquitto.conf(5), acl_file.
    """
    blocks = [GENERATED]
    for name, its in grants(plan).items():
        lines = [f"user {name}"]
        lines += [f"topic {'readwrite' if t in its.reads else 'write'} {t}" for t in its.writes]
        lines += [f"topic read {t}" for t in its.reads if t not in its.writes]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def broker_configuration(folder: str, *, port: int = SECURE_PORT, address: str = "", user: str = "") -> str:
    """A Mosquitto that lets in who has a certificate of the site, under the name in it.

    The name is the client's id as well, whatever the client says: nobody can take over another's connection.

    Args:
        folder: of the broker's own `ca.crt`, `tls.crt`, `tls.key` and `acl`, as it sees them.
        port: where to listen.
        address: of the one interface to listen on; empty: all of them.
        user: whom a broker that is started by root is to become; empty: `mosquitto`, who must be able to read
            the key.

    Source: mosquitto.conf(5).
    """
    listener = f"listener {port} {address}".rstrip()
    become = f"user {user}\n" if user else ""
    return f"""\
{GENERATED}{become}{listener}
cafile {folder}/{CA_FILE}
certfile {folder}/{CERTIFICATE_FILE}
keyfile {folder}/{KEY_FILE}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {folder}/{ACL_FILE}
# What is larger is not even taken into memory: its sender is disconnected.
max_packet_size 8454144
{MOSQUITTO_LIMITS}"""


def _topics(plan: Plan, part: Part, side: str) -> Iterator[str]:
    kinds = {each.kind for each in plan.parts}
    for channel in CHANNELS:
        whose = getattr(channel, side).get(part.kind)
        other = channel.readers if side == "writers" else channel.writers
        if whose is not None and (not other or kinds & set(other)):  # somebody is at the other end
            for key in _keys(plan, part, channel, whose):
                yield channel.topic(plan.site, key)


def _keys(plan: Plan, part: Part, channel: Channel[Any], whose: Whose | tuple[Whose, ...]) -> list[str]:
    """The values of a channel's key that are a module's own, or those of others, each once."""
    if whose == "own":
        return _own(part, channel)
    kinds = whose if isinstance(whose, tuple) else (whose,)
    others = [p for p in plan.parts if {"every", p.kind} & set(kinds) and _owns(p, channel)]
    return list(dict.fromkeys(key for other in others for key in _own(other, channel)))


def _owns(part: Part, channel: Channel[Any]) -> bool:
    """Whether a module has a key of its own in a channel: only who writes events is a producer."""
    return channel.key != EVENTS.key or part.kind in EVENTS.writers


def _own(part: Part, channel: Channel[Any]) -> list[str]:
    """A module's own values of a channel's key."""
    settings = part.settings
    match channel.key, settings:
        case (("module" | "producer"), _):
            return [part.module]
        case "link", UplinkSettings(name=link) | BufferSettings(link=link):
            return [link]
        case "camera", CaptureSettings(cameras=opened):
            return [camera.name for camera in opened]
        case "camera", DecisionSettings(cameras=named):
            return list(named)
        case "camera", InferenceSettings(models=models):
            return list(dict.fromkeys(name for model in models for name in model.cameras))
        case key, _:
            kind: Kind | str = part.kind
            raise TypeError(f"{channel.name}: expected a {kind} with a {key} of its own, got none")
