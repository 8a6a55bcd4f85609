"""Signed metadata behind an HTTP(S) server: `metadata/NAME`, beside the blobs of the same folder."""

from __future__ import annotations

import re

from skerry.errors import PackageError
from skerry.trust.sources import METADATA
from skerry.updater.fetch import NotThere
from skerry.updater.http_folder import HttpSource
from skerry.updater.web import Forbidden

WITHIN_S = 20.0
"""Seconds that one document may take in all: who asks for it has others waiting."""
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class HttpMetadata:
    """Metadata in the folder `metadata` of a repository behind a URL.

    Args:
        folder: the repository.
        within_s: seconds that one document may take in all.
    """

    def __init__(self, folder: HttpSource, within_s: float = WITHIN_S) -> None:
        self._folder = folder
        self._within_s = within_s

    def read(self, name: str, most: int) -> bytes | None:
        """As `skerry.trust.sources.Source` has it."""
        check_plain_name(name, self._folder.where)
        try:
            return self._folder.document(f"{METADATA}/{name}", most, within_s=self._within_s, cut=True)
        except NotThere:
            return None
        except Forbidden:
            # Stores of objects say so of what is not there to whoever may not list them, and the root that
            # comes next is asked for every time. Source: python-tuf, ngclient/updater.py, `_load_root`.
            if name.endswith(".root.json"):
                return None
            raise


def check_plain_name(name: str, where: str) -> None:
    """That a name is that of a file, without any folder.

    Raises:
        PackageError: it is not.
    """
    if not _PLAIN.fullmatch(name):
        raise PackageError(f"{where}: expected the name of a file, got {name[:80]!r}")
