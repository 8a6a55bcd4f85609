"""What capture is told: its cameras, and how each one's pictures are cut, turned and paced."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from msgspec import Meta

from skerry.messages import Fraction, Name
from skerry.redact import cleaned
from skerry.settings import LIVE, RESTART, ModuleSettings, Positive, Settings

Pace = Literal["realtime", "fast"]
"""`realtime` follows the media's clock; `fast` waits for each frame's result and never skips one."""

Pixels = Annotated[int, Meta(ge=16, le=16384)]
"""Width or height of a picture, in pixels."""

Fps = Annotated[float, Meta(gt=0, le=1000)]
Path = Annotated[str, Meta(min_length=1)]
Point = tuple[Fraction, Fraction]
"""x, y as fractions of the picture."""

Polygon = Annotated[tuple[Point, ...], Meta(min_length=3)]


class Login(Settings, frozen=True, kw_only=True):
    """Who we are to a camera on the network."""

    user: str = ""
    password_file: str = ""
    """File that holds the password; secrets are references."""


class FileSource(Settings, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """A video file of any format that FFmpeg reads."""

    path: Path
    loop: bool = False
    """Begin again at its end; timestamps go on."""
    pace: Pace = "realtime"


class RtspSource(Login, frozen=True, kw_only=True, tag_field="kind", tag="rtsp"):
    """A network camera, always over TCP: a lost UDP packet is a torn picture."""

    url: Annotated[str, Meta(pattern=r"^rtsps?://[^\s/]+")]
    timeout_s: Positive = 5.0
    """Longest time that connecting, and any one read, may take."""


class V4l2Source(Settings, frozen=True, kw_only=True, tag_field="kind", tag="v4l2"):
    """A camera of this machine, e.g. USB. What is left out, the driver chooses."""

    device: Annotated[str, Meta(pattern=r"^/dev/\S+$(?!\n)")]
    width: Pixels | None = None
    height: Pixels | None = None
    fps: Fps | None = None


class MjpegSource(Login, frozen=True, kw_only=True, tag_field="kind", tag="mjpeg"):
    """JPEG pictures over HTTP (multipart/x-mixed-replace)."""

    url: Annotated[str, Meta(pattern=r"^https?://[^\s/]+")]
    timeout_s: Positive = 5.0
    """Longest time that connecting, and any one read, may take."""


class ImagesSource(Settings, frozen=True, kw_only=True, tag_field="kind", tag="images"):
    """The pictures in a folder (.jpg, .jpeg, .png, .bmp), in the order of their names."""

    folder: Path
    fps: Fps = 10.0
    loop: bool = False
    pace: Pace = "realtime"


class SyntheticSource(Settings, frozen=True, kw_only=True, tag_field="kind", tag="synthetic"):
    """A scene drawn on the spot, the same for the same seed."""

    scene: Literal["belt"] = "belt"
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1
    fps: Fps = 15.0
    width: Annotated[int, Meta(ge=160, le=4096)] = 640
    height: Annotated[int, Meta(ge=120, le=4096)] = 480
    seconds: Positive | None = None
    """Length of scene time; without end when left out."""
    pace: Pace = "realtime"
    speed: Annotated[float, Meta(gt=0, le=1)] = 0.16
    """Mean belt speed, frame widths per second."""
    stopping: bool = True
    """Whether the belt sometimes stands still."""
    density: Fraction = 0.9
    """How full the belt is."""
    defect_rate: Fraction = 0.14
    """Share of parts with a defect."""
    light: Annotated[float, Meta(gt=0, le=3)] = 1.0
    """Mean brightness."""
    flicker: Fraction = 0.07
    """How much the brightness changes slowly, as a share of it."""
    noise: Annotated[float, Meta(ge=0, le=64)] = 4.0
    """Standard deviation of the sensor's noise, in grey levels."""


Source = FileSource | RtspSource | V4l2Source | MjpegSource | ImagesSource | SyntheticSource


class Backoff(Settings, frozen=True, kw_only=True):
    """How long to wait before trying a dead camera again; each wait is drawn from half of it to all."""

    first_s: Positive = 0.5
    factor: Annotated[float, Meta(ge=1, le=10)] = 2.0
    longest_s: Positive = 15.0
    """Short, since asking a camera that is switched off costs nothing."""


class Camera(Settings, frozen=True, kw_only=True):
    """One camera: where its pictures come from, and what is done to them before anyone sees them.

    The order is: `roi` of the picture as the source delivers it, `rotate`, resize, `masks`.
    """

    name: Name
    source: Source
    fps: Annotated[Fps | None, LIVE] = None
    """Take at most this many frames a second of media time, evenly; the rest are never captured."""
    width: Annotated[Pixels | None, RESTART] = None
    """Width of what is captured; with `height` left out, that follows from the aspect ratio."""
    height: Annotated[Pixels | None, RESTART] = None
    """Height of what is captured, likewise."""
    roi: Annotated[tuple[Fraction, Fraction, Fraction, Fraction] | None, RESTART] = None
    """x1, y1, x2, y2 of the part to keep, as fractions of the picture as delivered."""
    rotate: Annotated[Literal[0, 90, 180, 270], RESTART] = 0
    """Degrees clockwise."""
    masks: tuple[Polygon, ...] = ()
    """Painted black, in fractions of the captured picture: what is under them is never stored.
    Nobody can take them away from outside."""
    more_masks: Annotated[tuple[Polygon, ...], LIVE] = ()
    """More of them, which may be set and taken away from outside."""
    snapshots: Literal["never", "blurred", "allowed"] = "never"
    """Whether the command `snapshot` gets a picture of this camera, always with its masks: none, one in which
    things can be told apart and nobody can be recognised, or the picture as it is. Samples for labelling show
    no more than that."""
    stall_s: Annotated[Positive, LIVE] = 5.0
    """No frame for this long: degraded, and the source is opened again."""
    late_s: Annotated[Positive, LIVE] = 0.5
    """A frame that is this far behind is skipped, to stay current."""
    backoff: Backoff = Backoff()


class CaptureSettings(ModuleSettings, frozen=True, kw_only=True):
    """Settings of the capture module."""

    frames: Path = "/dev/shm/skerry"  # noqa: S108 - the frame store is shared memory by design
    """Folder of the frame store; must be a tmpfs that the readers share."""
    slots: Annotated[int, Meta(ge=6, le=64)] = 8
    """Frames that a camera's ring holds: how long a reader may take before a frame is gone."""
    cameras: Annotated[tuple[Camera, ...], Meta(min_length=1)]
    fast_window: Annotated[int, Meta(ge=1, le=4)] = 4
    """With `pace: fast`, frames that may be without a result at a time; below `slots`."""
    fast_wait_s: Positive = 2.0
    """With `pace: fast`, how long to wait for a result before it is counted as overdue."""
    consumer_wait_s: Annotated[float, Meta(ge=0)] = 120.0
    """With `pace: fast`, how long the first frame waits for inference and decision to be ready."""


def is_live(source: Source) -> bool:
    """Whether frames come at the source's own pace, and the ones not taken are lost."""
    return isinstance(source, RtspSource | V4l2Source | MjpegSource)


def is_fast(source: Source) -> bool:
    """Whether each frame waits for its result."""
    return isinstance(source, FileSource | ImagesSource | SyntheticSource) and source.pace == "fast"


def safe_url(url: str) -> str:
    """The URL without user and password, for logs and messages; some cameras have them in the path."""
    parts = urlsplit(url)
    return cleaned(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))


def url_with_login(url: str, user: str, password: str) -> str:
    """The URL with user and password in it, quoted, as FFmpeg takes them."""
    if not user:
        return url
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{address}"))
