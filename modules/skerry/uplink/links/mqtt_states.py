"""What an MQTT link keeps at the broker as retained messages: the last state of each rule, and discovery."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from skerry.uplink import settings as given
from skerry.uplink.home_assistant import Topics, configs
from skerry.uplink.last import Kept
from skerry.uplink.plain import level, told
from skerry.uplink.record import Record

_LEAST = ("state", "camera", "rule", "kind", "time", "id")
"""What is said of a rule where all of it would be too large."""


class Retained(NamedTuple):
    """A message to be retained."""

    topic: str
    payload: bytes


class States:
    """The retained messages of one link; used by one thread at a time.

    Args:
        settings: of the link, with `retain_last`.
        site: put into topics.
        folder: that outlives the process; None: what is known does not.
        max_payload: bytes.

    Attributes:
        discovered: what Home Assistant was told over this connection, by topic.
    """

    def __init__(self, settings: given.MqttLink, site: str, folder: Path | None, max_payload: int) -> None:
        self._settings = settings
        self._site = site
        self._kept = Kept(folder / "last-states.json" if folder is not None else None)
        self._max_payload = max_payload
        self.discovered: dict[str, bytes] = {}

    @property
    def trouble(self) -> str:
        """Why they could not be written to the disk; "" when they were."""
        return self._kept.trouble

    def all(self) -> list[Retained]:
        """What a new connection begins with: a broker may have lost it."""
        self.discovered = {}
        return [message for name in list(self._kept.last.states) for message in self._of(name)]

    def changed_by(self, batch: Sequence[Record]) -> list[Retained]:
        """What events change, once that outlives a power cut: one message a rule, the newest."""
        names: dict[str, None] = {}
        for record in batch:
            with contextlib.suppress(ValueError):  # an event by its envelope alone: it has no rule
                if (name := self._kept.last.take(told(record.raw))) is not None:
                    names[name] = None
        if names:
            self._kept.write()
        return [message for name in names for message in self._of(name)]

    def _of(self, name: str) -> list[Retained]:
        """The state of a rule, and what Home Assistant is told of it where that is new."""
        said = self._kept.last.states[name].said
        topic = self._in(self._settings.state_topic, name)
        payload = msgspec.json.encode(said)
        if len(payload) > self._max_payload:
            payload = msgspec.json.encode({key: said.get(key) for key in _LEAST})
        return [Retained(topic, payload), *self._discovery(name, said, topic)]

    def _discovery(self, name: str, said: dict[str, Any], state_topic: str) -> list[Retained]:
        assistant = self._settings.home_assistant
        if assistant is None:
            return []
        events, template = "", self._settings.topic
        if self._settings.format != "batch":
            kind = "+" if "{type}" in template else level(str(said["type"]))
            events = self._in(template, name, lane=str(said["lane"]), type=kind)
        topics = Topics(
            assistant.discovery_prefix, assistant.availability_topic.format(site=self._site), state_topic,
            events, nested=self._settings.format == "event",
        )  # fmt: skip
        found = [Retained(topic, msgspec.json.encode(c)) for topic, c in configs(self._site, said, topics)]
        new = [one for one in found if self.discovered.get(one.topic) != one.payload]
        self.discovered.update(new)
        return new

    def _in(self, template: str, name: str, **more: str) -> str:
        camera, _, rule = name.partition("/")
        return template.format(site=self._site, camera=camera, rule=rule, **more)
