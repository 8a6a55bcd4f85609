"""Which image a module runs in, and how an engine is told of it."""

from __future__ import annotations

import msgspec

from skerry import __version__
from skerry.deploy.plan import Part
from skerry.inference.settings import InferenceSettings
from skerry.uplink.settings import AzureLink, UplinkSettings


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """Which images a rendering names."""

    registry: str = ""
    """Put before their names, e.g. `registry.example/site`."""
    tag: str = __version__
    digests: dict[str, str] = msgspec.field(default_factory=dict)
    """`sha256:...` by name of the image, e.g. of `buffer`; an image with a digest is never another one."""

    def reference(self, name: str, *, tag_and_digest: bool = True) -> str:
        """How an engine is told of an image.

        Args:
            name: of the image, e.g. `buffer`.
            tag_and_digest: whether a tag, which is for people then, stands beside a digest.
        """
        prefix = f"{self.registry.rstrip('/')}/" if self.registry else ""
        digest = f"@{self.digests[name]}" if name in self.digests else ""
        tag = f":{self.tag}" if tag_and_digest or not digest else ""
        return f"{prefix}skerry-{name}{tag}{digest}"


def image_of(part: Part) -> str:
    """The image that a module needs for what it is told, by its name without `skerry-`."""
    match part.settings:
        case UplinkSettings(link=AzureLink()):
            return "uplink-azure"
        case InferenceSettings(models=models):
            if any(m.device in ("cuda", "tensorrt") for m in models):
                return "inference-gpu"
            if any(m.runtime == "openvino" or m.device in ("gpu", "npu", "openvino") for m in models):
                return "inference-openvino"
            return "inference-cpu"
        case _:
            return part.kind
