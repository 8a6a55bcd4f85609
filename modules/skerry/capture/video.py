"""Video by FFmpeg (PyAV): files, RTSP, MJPEG over HTTP. Why PyAV: docs/adr/0007-decode-library.md.

Decoding yields FFmpeg's own frame; converting it is left to `into`, where one pass of swscale cuts,
resizes and converts, and the copy into the slot turns it. So a frame that nobody takes is never
converted, and none is converted twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import Interpolation, VideoReformatter

from skerry.capture.feed import NoFrames, Pixels, Stalled, Unreachable, milliseconds_since, turn
from skerry.capture.geometry import Geometry
from skerry.capture.settings import FileSource, MjpegSource, RtspSource, safe_url, url_with_login

_S = 1_000_000_000
_BAD_READS = 50
"""After so many failed reads in a row a container is taken to have nothing more."""


@dataclass(frozen=True)
class Target:
    """What to open, and how."""

    url: str
    name: str
    """The URL or path for messages, without secrets."""
    live: bool
    threads: str
    """FFmpeg's thread type: SLICE adds no delay, AUTO decodes several frames at once."""
    loop: bool = False
    form: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    timeout_s: tuple[float, float] | None = None
    """For opening, and for one read; None for local files."""


def open_video(source: FileSource | RtspSource | MjpegSource, stall_s: float) -> VideoFeed:
    """Open a file or a stream.

    Raises:
        Unreachable: it is not there, refuses, or does not answer in time.
        NoFrames: it is there without a video in it.
    """
    return VideoFeed(_target(source, stall_s))


def _target(source: FileSource | RtspSource | MjpegSource, stall_s: float) -> Target:
    match source:
        case FileSource():
            # `file:` and the whitelist keep a path from being taken for an address
            return Target(
                url=f"file:{source.path}", name=source.path, live=False, loop=source.loop,
                threads="AUTO" if source.pace == "fast" else "SLICE",
                options={"protocol_whitelist": "file"},
            )  # fmt: skip
        case RtspSource():
            options = {"rtsp_transport": "tcp", "allowed_media_types": "video", "fflags": "nobuffer"}
            form = None
        case MjpegSource():
            options = {"protocol_whitelist": "http,https,tcp,tls"}
            form = "mpjpeg"
    timeout_us = str(round(source.timeout_s * 1_000_000))
    return Target(
        url=url_with_login(source.url, source.user, _password(source.password_file)),
        name=safe_url(source.url), live=True, threads="SLICE", form=form,
        options={**options, "timeout": timeout_us, "analyzeduration": "2000000"},
        timeout_s=(source.timeout_s, min(source.timeout_s, stall_s)),
    )  # fmt: skip


def _password(path: str) -> str:
    """The first line of the file, read at each connection: secrets are renewed under us."""
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreachable(f"{path}: cannot read the password file: {error}") from error


class VideoPicture:
    """A decoded frame in the stream's own format."""

    def __init__(
        self, frame: av.VideoFrame, converter: Converter, media_ns: int | None, decode_ms: float
    ) -> None:
        self.media_ns = media_ns
        self.decode_ms = decode_ms
        self.width, self.height = frame.width, frame.height
        self.upright = round(-frame.rotation) % 360
        self._frame = frame
        self._converter = converter

    def load(self) -> None:
        """It is decoded."""

    def into(self, out: Pixels, geometry: Geometry) -> None:
        self._converter.convert(self._frame, out, geometry)


class Converter:
    """From a decoder's frame to bgr24 in a slot; keeps swscale's tables from frame to frame."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._cutter: tuple[object, av.filter.Graph] | None = None

    def convert(self, frame: av.VideoFrame, out: Pixels, geometry: Geometry) -> None:
        """One pass of swscale, then one copy, which also turns."""
        width, height = geometry.before_turning
        if geometry.cuts(frame.width, frame.height):
            frame = self._cut(frame, geometry)
        # more swscale threads cost more CPU time than they save at these sizes
        picture = self._reformatter.reformat(
            frame, width, height, "bgr24", interpolation=Interpolation.BILINEAR, threads=1
        )
        turn(_pixels(picture), out, geometry.rotate)

    def _cut(self, frame: av.VideoFrame, geometry: Geometry) -> av.VideoFrame:
        """The part of a frame, still in the stream's format: FFmpeg only moves pointers."""
        key = (frame.width, frame.height, frame.format.name, geometry)
        if self._cutter is None or self._cutter[0] != key:
            self._cutter = key, _cutting(frame, geometry)
        graph = self._cutter[1]
        graph.vpush(frame)
        return graph.vpull()


def _cutting(frame: av.VideoFrame, geometry: Geometry) -> av.filter.Graph:
    graph = av.filter.Graph()
    g = geometry
    nodes = (
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        ),
        graph.add("crop", f"{g.cut_width}:{g.cut_height}:{g.left}:{g.top}"),
        graph.add("buffersink"),
    )
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


def _pixels(picture: av.VideoFrame) -> Pixels:
    """(height, width, 3) view of a bgr24 frame, whose lines FFmpeg may have padded."""
    plane = picture.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: picture.height, : picture.width * 3].reshape(picture.height, picture.width, 3)


class VideoFeed:
    """An open video. At the end of a looped one it is opened again, and its time goes on."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.corrupt = 0
        self.note = ""
        self._converter = Converter()
        self._interrupted = False
        self._offset_ns = 0
        self._end_ns = 0
        self._round = 0
        self._open()

    def _open(self) -> None:
        target = self._target
        try:
            self._container = av.open(
                target.url, format=target.form, options=dict(target.options), timeout=target.timeout_s
            )
        except (av.error.FFmpegError, OSError) as error:
            raise _refusal(target, error) from error
        if not self._container.streams.video:
            self._container.close()
            raise NoFrames(f"{target.name}: expected a video, there is none in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = target.threads
        if target.live:
            self._stream.codec_context.flags |= Flags.low_delay
        tick, rate = self._stream.time_base, self._stream.average_rate
        self._tick = (tick.numerator, tick.denominator) if tick else (1, 1000)
        self._step_ns = round(_S / rate) if rate else 0
        self._first_pts: int | None = None
        self._frames_in_round = 0
        self._frames = self._decode()

    def read(self) -> VideoPicture | None:
        while True:
            picture = next(self._frames, None)
            if picture is not None:
                return picture
            if not self._frames_in_round:
                raise NoFrames(f"{self._target.name}: expected frames, none could be decoded")
            if not self._target.loop:
                self.note = self._missing_end()
                return None
            self._container.close()
            self._offset_ns = self._end_ns
            self._open()

    def _decode(self) -> Iterator[VideoPicture]:
        """The frames from here to the end of the container."""
        for packet in self._packets():
            start = time.perf_counter()
            if packet.is_corrupt:
                self.corrupt += 1
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                if not isinstance(error, av.error.EOFError):
                    self.corrupt += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.corrupt += 1
                    continue
                self._frames_in_round += 1
                yield VideoPicture(frame, self._converter, self._media_ns(frame), milliseconds_since(start))
                start = time.perf_counter()

    def _packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """What the demuxer finds; goes on behind damage, and gives up when there is only that."""
        failed = 0
        while failed < _BAD_READS:
            try:
                for packet in self._container.demux(self._stream):
                    if self._interrupted:
                        raise Stalled(f"{self._target.name}: expected a frame, got none in time")
                    failed = 0
                    yield packet
                return
            except av.error.ExitError as error:
                raise Stalled(f"{self._target.name}: expected data, got none in time") from error
            except av.error.InvalidDataError:
                failed += 1
                self.corrupt += 1
            except (av.error.FFmpegError, OSError) as error:
                raise _refusal(self._target, error) from error

    def _media_ns(self, frame: av.VideoFrame) -> int | None:
        """Presentation time since the beginning; over the loops of a file it goes on."""
        if frame.pts is None:
            return None
        if self._first_pts is None:
            self._first_pts = frame.pts
        here = self._ns(frame.pts - self._first_pts)
        step = self._ns(frame.duration) if frame.duration else self._step_ns
        self._end_ns = max(self._end_ns, self._offset_ns + here + step)
        return self._offset_ns + here

    def _ns(self, ticks: int) -> int:
        """Ticks of the stream's clock in nanoseconds. In whole numbers: fractions took 0.05 ms a frame."""
        numerator, denominator = self._tick
        return (ticks * numerator * _S + denominator // 2) // denominator

    def _missing_end(self) -> str:
        """What to say when the file stopped well before the end that it announces."""
        if self._target.live:
            return ""
        announced_s = (self._container.duration or 0) / av.time_base
        if self._stream.duration and self._stream.time_base:
            announced_s = float(self._stream.duration * self._stream.time_base)
        seen_s = (self._end_ns - self._offset_ns) / _S
        if seen_s > announced_s - max(1.0, 0.05 * announced_s):
            return ""
        name = self._target.name
        return f"{name}: expected {announced_s:.1f} s of video, it ends at {seen_s:.1f} s (damaged?)"

    def interrupt(self) -> None:
        """Ends a read at its next packet; a silent connection ends by its time-out."""
        self._interrupted = True

    def close(self) -> None:
        self._container.close()


def _refusal(target: Target, error: Exception) -> Unreachable | NoFrames | Stalled:
    """Our error for FFmpeg's, whose own text would show the password in the URL."""
    if isinstance(error, av.error.ExitError):
        return Stalled(f"{target.name}: expected an answer, got none in time")
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return NoFrames(f"{target.name}: expected a video, this is none that FFmpeg can read")
    reason = error.strerror if isinstance(error, OSError) else None
    return Unreachable(f"{target.name}: {reason or type(error).__name__}")
