"""An RTSP server of H.264, for tests: GStreamer's, run by the system's Python.

    /usr/bin/python3 rtsp_server.py [--port N] [--file VIDEO.mp4] [--login USER:PASSWORD]

Prints `ready PORT` once it listens on 127.0.0.1, and serves rtsp://127.0.0.1:PORT/cam until killed.
"""

import argparse

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - versions must be named first

PATTERN = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=15/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 threads=1 "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )"
)
FILE = "( filesrc location={} ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--file", default="")
    parser.add_argument("--login", default="")
    arguments = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(arguments.port))
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(FILE.format(arguments.file) if arguments.file else PATTERN)
    factory.set_shared(not arguments.file)
    if arguments.login:
        protect(server, factory, *arguments.login.split(":", 1))
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("ready", server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


def protect(server, factory, user: str, password: str) -> None:
    """Let nobody in without this login."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    role = Gst.Structure.new_empty("viewer")
    role.set_value("media.factory.access", True)
    role.set_value("media.factory.construct", True)
    factory.add_role_from_structure(role)


if __name__ == "__main__":
    main()
