"""A twin as a platform keeps it: desired and reported state, each a document with a version. Pure.

Source: Azure IoT Hub, device twins (back-end and device operations); RFC 7396 (JSON merge patch).
"""

from __future__ import annotations

from typing import Any, NamedTuple

Document = dict[str, Any]


class Desired(NamedTuple):
    """A desired state, whole, without what the platform adds."""

    version: int
    document: Document


class Twin:
    """Keeps up with the desired state, and says what of the reported one is to be sent.

    The platform sends the whole twin when it is asked, and differences afterwards, numbered without a
    hole. A hole means that the whole is to be asked for again.

    Attributes:
        wanted: whether the whole twin is to be asked for.
    """

    def __init__(self) -> None:
        self.wanted = True
        self._version = -1
        self._desired: Document = {}
        self._reported: Document | None = None
        self._newest = -1

    def whole(self, twin: Any) -> Desired | None:
        """The answer to the question for the whole; None when it is not one, or nothing new."""
        if not isinstance(twin, dict):
            return None
        desired, reported = twin.get("desired"), twin.get("reported")
        if isinstance(reported, dict):
            self._reported = own(reported)
        version = _version(desired)
        if not isinstance(desired, dict) or version is None or version < self._version:
            return None
        # A difference that came while the answer was on its way may be newer than the answer.
        self.wanted = version < self._newest
        if version == self._version:
            return None
        self._version, self._desired = version, own(desired)
        return Desired(version, self._desired)

    def changed(self, patch: Any) -> Desired | None:
        """A difference; None when it says nothing new, or there is a hole before it."""
        version = _version(patch)
        if version is None or version <= self._version:
            return None
        self._newest = max(self._newest, version)
        if self.wanted or version > self._version + 1:
            self.wanted = True
            return None
        self._version, self._desired = version, merged(self._desired, own(patch))
        return Desired(version, self._desired)

    @property
    def known(self) -> bool:
        """Whether the platform has said what it was told before."""
        return self._reported is not None

    def difference(self, document: Document) -> Document:
        """What to send so that the platform has this document and no key of the former one."""
        return difference(self._reported or {}, document)

    def told(self, document: Document) -> None:
        """The platform has this document now."""
        self._reported = document

    def doubt(self) -> None:
        """What was put together is no good: the whole twin is wanted, whatever its version."""
        self._version = -1
        self.wanted = True

    def forget(self) -> None:
        """Nobody knows what the platform has been told: the whole twin says so."""
        self._reported = None
        self.wanted = True


def own(document: Document) -> Document:
    """Without the keys that the platform adds."""
    return {key: value for key, value in document.items() if not key.startswith("$")}


def merged(old: Document, patch: Document) -> Document:
    """What becomes of a document by a merge patch; neither is changed."""
    new = dict(old)
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            before = new.get(key)
            new[key] = merged(before if isinstance(before, dict) else {}, value)
        else:
            new[key] = value
    return new


def difference(old: Document, new: Document) -> Document:
    """The merge patch that makes the one of the other; null for keys that are no more."""
    patch: Document = dict.fromkeys(key for key in old if key not in new)
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := difference(before, value):
                patch[key] = inner
        elif key not in old or not _same(value, before):
            patch[key] = value
    return patch


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are: 1 and true are not."""
    return type(one) is type(other) and bool(one == other)


def _version(document: Any) -> int | None:
    version = document.get("$version") if isinstance(document, dict) else None
    return version if isinstance(version, int) and not isinstance(version, bool) else None
