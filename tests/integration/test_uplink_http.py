"""The HTTP link against a real server: what is sent, what each answer does, and that every wait ends."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from authority import Authority
from http_far_end import HttpFarEnd, Say
from records import record, records
from skerry.errors import LinkDown, Rejected
from skerry.settings import TlsSettings
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.limits import Bounds
from skerry.uplink.links.http import HttpLink


@pytest.fixture
def far() -> Iterator[HttpFarEnd]:
    with HttpFarEnd() as end:
        yield end


@contextlib.contextmanager
def linked(
    far: HttpFarEnd | int, path: str = "/in", stop: threading.Event | None = None, **changes: Any
) -> Iterator[HttpLink]:
    """An open link."""
    with made(far, path, stop, **changes) as link:
        link.open()
        yield link


@contextlib.contextmanager
def made(
    far: HttpFarEnd | int, path: str = "/in", stop: threading.Event | None = None, **changes: Any
) -> Iterator[HttpLink]:
    """A link, closed in the end."""
    port = far if isinstance(far, int) else far.port
    scheme, host = ("https", "localhost") if "tls" in changes else ("http", "127.0.0.1")
    url = f"{scheme}://{host}:{port}{path}"
    link = HttpLink(given.HttpLink(**{"url": url, "timeout_s": 5.0, **changes}), stop or threading.Event())
    try:
        yield link
    finally:
        link.close()


def seqs(far: HttpFarEnd) -> list[int]:
    return [e.seq for e in far.arrived]


def down(link: HttpLink, first: int = 1, last: int = 1) -> LinkDown:
    """What is said of a far end that does not take it."""
    with pytest.raises(LinkDown) as caught:
        link.send(records(first, last))
    return caught.value


def shut(link: HttpLink) -> LinkDown:
    """What is said of a far end that cannot be reached."""
    with pytest.raises(LinkDown) as caught:
        link.open()
    return caught.value


class TestWhatIsSent:
    def test_one_event_a_request_is_structured_json(self, far: HttpFarEnd) -> None:
        with linked(far, "/a/b?code=7", headers={"X-Site": "here", "user-agent": "me"}) as link:
            link.send(records(1, 3))
        assert len(far.got) == 3
        for got in far.got:
            assert got.path == "/a/b?code=7"
            assert got.headers["content-type"] == "application/cloudevents+json"
            assert got.headers["host"] == f"127.0.0.1:{far.port}"
            assert got.headers["x-site"] == "here"
            assert got.headers["user-agent"] == "me"
            assert "content-encoding" not in got.headers
        assert seqs(far) == [1, 2, 3]

    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    @pytest.mark.parametrize("form", ["event", "batch"])
    def test_what_is_compressed_says_so(self, far: HttpFarEnd, form: str, compression: str) -> None:
        with linked(far, format=form, compression=compression) as link:
            link.send([record(1, size=5000), record(2, size=5000)])
        assert {got.headers["content-encoding"] for got in far.got} == {compression}
        assert all(int(got.headers["content-length"]) < 2000 for got in far.got)
        assert far.raw == [record(1, size=5000).raw, record(2, size=5000).raw]

    def test_what_would_only_grow_is_sent_as_it_is(self, far: HttpFarEnd) -> None:
        with linked(far, compression="gzip") as link:
            link._compress = lambda content: content
            link.send(records(1, 1))
        assert "content-encoding" not in far.got[0].headers

    def test_the_same_events_have_the_same_key_and_others_another(self, far: HttpFarEnd) -> None:
        with linked(far, format="batch") as link:
            for first, last, source, epoch in (
                (1, 3, "/a", "e"), (1, 3, "/a", "e"), (1, 2, "/a", "e"), (1, 3, "/b", "e"), (1, 3, "/a", "f")
            ):  # fmt: skip
                link.send(records(first, last, source=source, epoch=epoch))
        keys = [got.key for got in far.got]
        assert keys[0] == keys[1]
        assert len(set(keys)) == 4
        assert all(len(key) == 34 and key[0] == key[-1] == '"' for key in keys)

    def test_what_is_too_large_is_refused_here_and_the_rest_goes_on(self, far: HttpFarEnd) -> None:
        with linked(far, max_payload_bytes=2000) as link:
            with pytest.raises(Rejected, match=r"^e1-1: expected at most 2000 bytes, got "):
                link.send([record(1, size=3000)])
            link.send(records(2, 2))
        settings = given.HttpLink(url="http://127.0.0.1/", format="batch")
        assert HttpLink(settings, threading.Event(), Bounds(message_bytes=1500)).max_bytes == 1498
        assert seqs(far) == [2]

    def test_the_environment_names_no_proxy(self, far: HttpFarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        with linked(far) as link:
            link.send(records(1, 1))
        assert seqs(far) == [1]

    def test_a_proxy_is_told_the_whole_address(self, far: HttpFarEnd) -> None:
        with linked(far, url="http://far.invalid/in?x=1", proxy=f"http://127.0.0.1:{far.port}") as link:
            link.send(records(1, 1))
        assert far.got[0].path == "http://far.invalid/in?x=1"
        assert far.got[0].headers["host"] == "far.invalid"


class TestTheConnection:
    def test_it_is_kept(self, far: HttpFarEnd) -> None:
        with linked(far) as link:
            for n in range(1, 6):
                link.send(records(n, n))
        assert far.connections == 1

    @pytest.mark.parametrize("how", ["silent", "final"])
    def test_a_far_end_that_hangs_up_after_each_answer_is_not_down(self, far: HttpFarEnd, how: str) -> None:
        setattr(far, how, True)
        with linked(far) as link:
            for n in range(1, 6):
                link.send(records(n, n))
        assert seqs(far) == [1, 2, 3, 4, 5]
        assert far.connections == 5

    def test_one_that_hung_up_meanwhile_is_not_down(self, far: HttpFarEnd) -> None:
        with linked(far) as link:
            link.send(records(1, 1))
            far.hang_up()
            link.send(records(2, 2))
        assert seqs(far) == [1, 2]

    def test_one_that_hangs_up_just_as_we_begin_gets_the_same_request_again(self, far: HttpFarEnd) -> None:
        with linked(far, format="batch") as link:
            link.send(records(1, 1))
            far.said.append(Say(0, take=True))
            link.send(records(2, 4))
        assert seqs(far) == [1, 2, 3, 4, 2, 3, 4]
        assert far.got[1].key == far.got[2].key

    def test_one_that_hangs_up_on_a_new_connection_is_down(self, far: HttpFarEnd) -> None:
        with linked(far) as link:
            link.send(records(1, 1))
            far.said += [Say(0), Say(0)]
            assert "no answer" in str(down(link, 2, 2))
            assert not far.said
            link.open()
            link.send(records(2, 2))
        assert seqs(far) == [1, 2]

    def test_only_a_connection_that_was_kept_is_tried_again(self, far: HttpFarEnd) -> None:
        with linked(far) as link:
            link.send(records(1, 1))
            far.hang_up()
            far.said.append(Say(0))
            down(link, 2, 2)
        assert len(far.seen) == 2

    def test_an_answer_that_nobody_asked_for_confirms_nothing(self) -> None:
        """Some servers say 408 to a connection that is idle, and 200 would be worse."""
        asked: list[int] = []
        said = threading.Event()

        def serve(sock: socket.socket, over: threading.Event) -> None:
            sock.recv(65536)
            asked.append(len(asked))
            sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            over.wait(0.1)  # else it may be read with the answer before it
            sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            said.set()

        with raw_server(serve) as port, linked(port) as link:
            link.send(records(1, 1))
            assert said.wait(10)
            link.send(records(2, 2))
        assert asked == [0, 1]

    def test_a_reset_while_we_send_is_down_not_refused(self, far: HttpFarEnd) -> None:
        far.reset = 2
        with linked(far, max_payload_bytes=8_000_000) as link:
            with pytest.raises(LinkDown):
                link.send([record(1, size=4_000_000)])
            link.open()
            link.send([record(1, size=4_000_000)])
        assert seqs(far) == [1]

    def test_a_refusal_that_comes_before_all_is_sent_is_one(self) -> None:
        """As of a proxy that looks at the length alone, answers and hangs up."""

        def serve(sock: socket.socket, _over: threading.Event) -> None:
            sock.recv(100)
            sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        with raw_server(serve) as port, linked(port, max_payload_bytes=20_000_000) as link:
            large = [record(1, size=16_000_000)]
            with pytest.raises(Rejected, match="refused with 413"):
                link.send(large)

    def test_an_answer_that_is_cut_short_is_none(self, far: HttpFarEnd) -> None:
        far.said.append(Say(200, body=b"all is w", take=True, torn=True))
        with linked(far) as link:
            down(link)
            link.open()
            link.send(records(1, 1))
        assert seqs(far) == [1, 1]

    def test_of_an_endless_answer_no_more_is_read_than_needed(self) -> None:
        asked: list[bytes] = []

        def serve(sock: socket.socket, over: threading.Event) -> None:
            asked.append(sock.recv(65536))
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
            while not over.is_set():
                sock.sendall(b"x" * 65536)

        with raw_server(serve) as port, linked(port) as link:
            link.send(records(1, 1))
            link.send(records(2, 2))
        assert len(asked) == 2

    def test_after_a_failure_it_is_opened_again_before_anything_is_sent(self, far: HttpFarEnd) -> None:
        far.said.append(Say(503))
        with linked(far) as link:
            down(link)
            assert "open it" in str(down(link))
            assert len(far.seen) == 1

    def test_an_outage_in_the_middle_of_a_batch_costs_nothing(self, far: HttpFarEnd) -> None:
        """What had its own answer comes again, under the same key."""
        far.said += [Say(204, take=True), Say(204, take=True), Say(0), Say(0)]  # a kept one is tried again
        with linked(far) as link:
            down(link, 1, 4)
            assert seqs(far) == [1, 2]
            link.open()
            link.send(records(1, 4))
        assert seqs(far) == [1, 2, 1, 2, 3, 4]
        keys = [got.key for got in far.got]
        assert keys[:2] == keys[2:4]
        assert len(set(keys)) == 4


class TestAnswers:
    @pytest.mark.parametrize("status", [302, 401, 403, 404, 408, 425, 429, 500, 503])
    def test_a_far_end_that_may_take_it_later_is_down(self, far: HttpFarEnd, status: int) -> None:
        far.said.append(Say(status, (("Location", "/elsewhere"), ("Retry-After", "17"))))
        with linked(far) as link:
            error = down(link)
            assert str(status) in str(error)
            assert error.retry_after_s == 17
            assert len(far.seen) == 1
            link.open()
            link.send(records(1, 1))
        assert seqs(far) == [1]

    @pytest.mark.parametrize("status", [400, 409, 413, 422])
    def test_a_refusal_leaves_the_connection_as_it_is(self, far: HttpFarEnd, status: int) -> None:
        far.refuse = lambda e: status if e.seq == 2 else 0
        with linked(far, format="batch") as link:
            with pytest.raises(Rejected, match=f"refused with {status}: not such a one"):
                link.send(records(1, 3))
            link.send(records(3, 3))
        assert seqs(far) == [3]
        assert far.connections == 1

    def test_a_secret_that_the_far_end_repeats_is_not_shown(self, far: HttpFarEnd, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("s3cr3t-token")
        (tmp_path / "key").write_text("s3cr3t-key")
        far.said.append(Say(400, body=b"Bearer s3cr3t-token and s3cr3t-key are not welcome"))
        files = {"token_file": str(tmp_path / "token"), "header_files": {"X-Api-Key": str(tmp_path / "key")}}
        with linked(far, "/in?sig=s3cr3t", **files) as link:
            with pytest.raises(Rejected) as caught:
                link.send(records(1, 1))
            far.said.append(Say(503))
            assert "s3cr3t" not in str(down(link))
        assert str(caught.value).endswith("/in: refused with 400: Bearer *** and *** are not welcome")
        assert far.seen[0]["x-api-key"] == "s3cr3t-key"


class TestWaiting:
    def test_no_answer_is_down_after_the_timeout(self, far: HttpFarEnd) -> None:
        far.frozen.set()
        with linked(far, timeout_s=0.3) as link:
            assert str(down(link)).endswith("/in: did not answer within 0.3 s")

    def test_a_slow_far_end_is_not_down(self, far: HttpFarEnd) -> None:
        """The time given is that of each request, not of a batch of several."""
        with linked(far, timeout_s=1.0) as link:
            for n in range(3):
                far.frozen.set()
                link.start(records(n + 1, n + 1))
                assert not link.finish(0.4)
                far.frozen.clear()
                eventually(lambda: link.finish(0.1))
        assert seqs(far) == [1, 2, 3]
        assert far.connections == 1

    def test_finish_waits_no_longer_than_it_is_told(self, far: HttpFarEnd) -> None:
        far.frozen.set()
        with linked(far) as link:
            link.start(records(1, 1))
            assert not link.finish(0.0)
            assert not link.finish(0.02)
            far.frozen.clear()
            eventually(lambda: link.finish(0.01))

    @pytest.mark.parametrize(
        "dribble", [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9999, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]
    )
    def test_an_answer_that_never_ends_is_down_after_the_timeout(self, dribble: bytes) -> None:
        """Each byte of it comes soon enough."""

        def serve(sock: socket.socket, over: threading.Event) -> None:
            sock.recv(65536)
            for n in range(len(dribble)):
                sock.sendall(dribble[n : n + 1])
                if over.wait(0.02 if n > 30 else 0):
                    return
            over.wait(20)

        with raw_server(serve) as port, linked(port, timeout_s=0.5) as link:
            assert str(down(link)).endswith("/in: did not answer within 0.5 s")

    def test_what_is_no_http_is_down(self) -> None:
        def serve(sock: socket.socket, _over: threading.Event) -> None:
            sock.recv(65536)
            sock.sendall(b"220 mail.example ESMTP\r\n")

        with raw_server(serve) as port, linked(port) as link:
            assert "/in: no answer: 220 mail.example ESMTP (check" in str(down(link))

    def test_a_connection_that_nobody_accepts_is_down(self) -> None:
        with contextlib.ExitStack() as held:
            server = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):  # the queue is full then, and the kernel says nothing
                waiting = held.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(server.getsockname())
            with made(server.getsockname()[1], timeout_s=0.3) as link:
                assert "cannot connect: timed out" in str(shut(link))

    def test_a_handshake_that_nobody_answers_is_down(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)

        def serve(_sock: socket.socket, over: threading.Event) -> None:
            over.wait(20)

        tls = TlsSettings(ca=str(authority.ca))
        with raw_server(serve) as port, made(port, tls=tls, timeout_s=0.3) as link:
            assert "timed out" in str(shut(link))

    def test_stopping_ends_every_wait(self, far: HttpFarEnd) -> None:
        far.frozen.set()
        stop = threading.Event()
        with linked(far, stop=stop, timeout_s=300) as link:
            link.start(records(1, 1))
            threading.Timer(0.1, stop.set).start()
            with pytest.raises(LinkDown, match="stopping"):
                link.finish()
        eventually(nobody_posts)

    def test_closing_cuts_off_what_is_under_way(self, far: HttpFarEnd) -> None:
        far.frozen.set()
        with linked(far, timeout_s=300) as link:
            link.start(records(1, 1))
            eventually(lambda: far.seen)
            link.close()
            assert nobody_posts()
            far.frozen.clear()
            link.open()
            assert not link.finish(0.01)
            link.send(records(1, 1))

    def test_opening_can_be_given_up_by_another_thread(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        failed: list[LinkDown] = []

        def serve(_sock: socket.socket, over: threading.Event) -> None:
            over.wait(20)

        with (
            raw_server(serve) as port,
            made(port, tls=TlsSettings(ca=str(authority.ca)), timeout_s=60) as link,
        ):

            def attempt() -> None:
                try:
                    link.open()
                except LinkDown as error:
                    failed.append(error)

            thread = threading.Thread(target=attempt)
            thread.start()
            eventually(lambda: link._session is not None and link._session._wire is not None)
            link.close()
            thread.join(10)
            assert failed


class TestCredentials:
    def test_a_token_is_exchanged_without_a_restart(self, far: HttpFarEnd, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text("one\n")
        far.token = "one"
        with linked(far, token_file=str(token)) as link:
            link.send(records(1, 1))
            replace(token, "two")
            far.token = "two"
            link.send(records(2, 2))
        assert seqs(far) == [1, 2]
        assert far.connections == 1

    def test_an_expired_token_is_down_until_there_is_a_new_one(self, far: HttpFarEnd, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text("old")
        far.token = "new"
        with linked(far, token_file=str(token)) as link:
            error = str(down(link))
            assert "the credentials are refused with 401 (renew link.token_file" in error
            assert "old" not in error
            replace(token, "new")
            link.open()
            link.send(records(1, 1))
        assert seqs(far) == [1]

    def test_credentials_that_are_refused_are_read_again_although_no_file_seems_to_have_changed(
        self, far: HttpFarEnd, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text("old")
        far.token = "new"
        with linked(far, token_file=str(tmp_path / "token")) as link, capture_logs() as logs:
            down(link)
            assert logs == []
            link.open()
            down(link)
        assert [entry["event"] for entry in logs] == ["credentials.read"]

    def test_secrets_in_the_clear_are_warned_of_but_not_on_the_loopback(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("one")
        with capture_logs() as logs:
            for url in (
                "http://far.invalid/",
                "http://127.0.0.1/",
                "http://localhost/",
                "https://far.invalid/",
            ):
                settings = given.HttpLink(url=url, token_file=str(tmp_path / "token"))
                HttpLink(settings, threading.Event())
        assert [(e["event"], e["url"]) for e in logs] == [
            ("http.credentials_in_clear", "http://far.invalid/")
        ]


class TestTls:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path / "keys")

    def client(self, authority: Authority, **more: Any) -> TlsSettings:
        certificate, key = authority.issue("client", **more)
        return TlsSettings(ca=str(authority.ca), certificate=str(certificate), key=str(key))

    def test_a_client_certificate_opens_the_door(self, authority: Authority) -> None:
        with HttpFarEnd(authority.server("localhost", mutual=True)) as far:
            with linked(far, tls=self.client(authority), format="batch") as link:
                for n in range(1, 4):
                    link.send([record(n, size=200_000)])
            assert seqs(far) == [1, 2, 3]
            assert far.connections == 1

    def test_no_certificate_or_an_old_one_is_said_to_be_refused(self, authority: Authority) -> None:
        old = self.client(authority, days=(-7, -1))
        with HttpFarEnd(authority.server("localhost", mutual=True)) as far:
            for tls in (TlsSettings(ca=str(authority.ca)), old):
                with linked(far, tls=tls) as link:
                    error = str(down(link))
                assert "the credentials are refused: " in error
                assert f"renew link.tls.certificate {tls.certificate or '(none is given)'};" in error
            assert far.got == []

    def test_an_impostor_gets_nothing(self, authority: Authority, tmp_path: Path) -> None:
        stranger = Authority(tmp_path / "stranger")
        tls = TlsSettings(ca=str(authority.ca))
        for context, hint in (
            (stranger.server("localhost"), r"check link\.tls\.ca .*/keys/ca\.pem, and the clock"),
            (authority.server("elsewhere"), r"check the name in link\.url"),
        ):
            with HttpFarEnd(context) as far, made(far, tls=tls) as link:
                with pytest.raises(LinkDown, match=rf"not trusted: .* \({hint}\)"):
                    link.open()
                assert far.seen == []

    def test_an_expired_server_is_an_impostor(self, authority: Authority) -> None:
        context = authority.server("localhost")
        context.load_cert_chain(*authority.issue("old", "localhost", days=(-7, -1)))
        with HttpFarEnd(context) as far, made(far, tls=TlsSettings(ca=str(authority.ca))) as link:
            assert "certificate has expired" in str(shut(link))

    def test_a_certificate_is_exchanged_without_a_restart(self, authority: Authority, tmp_path: Path) -> None:
        tls = self.client(authority)
        with HttpFarEnd(authority.server("localhost", mutual=True)) as far, linked(far, tls=tls) as link:
            link.send(records(1, 1))
            # The far end now knows another authority alone, on new connections.
            other = Authority(tmp_path / "other")
            far.context = other.server("localhost", mutual=True)
            certificate, key = other.issue("client")
            shutil.copy(other.ca, tls.ca)
            key.replace(tls.key)
            certificate.replace(tls.certificate)
            link.send(records(2, 2))
            assert seqs(far) == [1, 2]
            assert far.connections == 2

    def test_a_proxy_makes_a_way_through(self, authority: Authority) -> None:
        with HttpFarEnd(authority.server("localhost", mutual=True)) as far:
            with raw_server(relay(far.port)) as port:
                tls = self.client(authority)
                with linked(far, tls=tls, proxy=f"http://127.0.0.1:{port}") as link:
                    link.send(records(1, 1))
            assert seqs(far) == [1]

    @pytest.mark.parametrize(
        ("says", "reason"), [(b"HTTP/1.1 403 No\r\n\r\n", "403"), (b"hello\r\n\r\n", "no HTTP")]
    )
    def test_a_proxy_that_refuses_is_down(self, authority: Authority, says: bytes, reason: str) -> None:
        def serve(sock: socket.socket, _over: threading.Event) -> None:
            sock.recv(65536)
            sock.sendall(says)

        with raw_server(serve) as port:
            tls = TlsSettings(ca=str(authority.ca))
            with made(9, tls=tls, proxy=f"http://127.0.0.1:{port}") as link:
                error = str(shut(link))
            assert "the proxy answered" in error
            assert reason in error


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def nobody_posts() -> bool:
    return not any(thread.name == "post" for thread in threading.enumerate())


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """A server of one connection after the other that does with each what it is told."""
    over = threading.Event()

    def accept() -> None:
        while not over.is_set():
            try:
                sock = server.accept()[0]
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                serve(sock, over)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def relay(port: int) -> Callable[[socket.socket, threading.Event], None]:
    """A proxy that knows CONNECT, to this port whatever it is asked for."""

    def serve(sock: socket.socket, over: threading.Event) -> None:
        assert sock.recv(65536).startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
        with socket.create_connection(("127.0.0.1", port)) as far:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for one in (sock, far):
                one.settimeout(0.02)
            while not over.is_set():
                for here, there in ((sock, far), (far, sock)):
                    with contextlib.suppress(TimeoutError):
                        if not (part := here.recv(65536)):
                            return
                        there.sendall(part)

    return serve
