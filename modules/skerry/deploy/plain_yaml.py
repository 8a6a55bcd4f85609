"""YAML as people read it: blocks, in the order given, no line broken, nothing by reference."""

from __future__ import annotations

import sys
from typing import Any

import yaml


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class's signature
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - as above
        return super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text of several lines keeps them."""
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)


def dump(*documents: Any) -> str:
    """One document, or several with `---` between them."""
    texts = [
        yaml.dump(document, Dumper=_Plain, sort_keys=False, width=sys.maxsize, allow_unicode=True)
        for document in documents
    ]
    return "---\n".join(texts)
