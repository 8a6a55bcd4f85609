"""What an HTTP link may be told, and what is said of mistakes."""

from __future__ import annotations

import pytest

from skerry.errors import ConfigError
from skerry.settings import parse
from skerry.uplink.settings import HttpLink, UplinkSettings
from skerry.uplink.wire import target

GIVEN = {"site": "s", "module": "u", "state": "/x"}
URL = "expected https://host[:port]"
ODD = f"url: {URL}, got something that is no ASCII or has spaces (percent-encode it)"
SECRET = "expected no secret (put it into header_files)"
OURS = "expected a header that the link does not set itself"
PROXY = "proxy: expected http://host[:port]"


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ({"url": "far/in"}, f"url: {URL}, got no https or http address"),
        ({"url": "ftp://far/in"}, f"url: {URL}, got no https or http address"),
        ({"url": "https:///in"}, f"url: {URL}, got no https or http address"),
        ({"url": "https://far:0/"}, f"url: {URL}, got no https or http address"),
        ({"url": "https://far:x/"}, f"url: {URL} (Port could not be cast to integer value as 'x')"),
        ({"url": "https://far/a b"}, ODD),
        ({"url": "https://far/\r\nX:1"}, ODD),
        ({"url": "https://far/#a"}, f"url: {URL} and nothing behind it that is not sent"),
        (
            {"url": "https://me:hush@far/"},
            f"url: {URL} without a login (secrets are files: token_file, header_files)",
        ),
        ({"url": "http://far/", "tls": {}}, "tls: expected an https url with it, got an http one"),
        ({"tls": {"key": "k"}}, "tls.certificate: expected a file with the key's certificate, got nothing"),
        ({"proxy": "https://p:3128"}, f"{PROXY}, got no http address"),
        ({"proxy": "http://p/x"}, f"{PROXY} and nothing behind it that is not sent"),
        ({"headers": {"a b": "1"}}, "headers.a b: expected the name of a header"),
        ({"headers": {"": "1"}}, "headers.: expected the name of a header"),
        ({"headers": {"X-A": "hush\r\nX-B: 1"}}, "headers.X-A: expected one line of visible ASCII"),
        ({"headers": {"X-A": ""}}, "headers.X-A: expected one line of visible ASCII"),
        ({"headers": {"Authorization": "hush"}}, f"headers.Authorization: {SECRET}"),
        ({"headers": {"X-Api-Key": "hush"}}, f"headers.X-Api-Key: {SECRET}"),
        ({"headers": {"content-type": "x"}}, f"headers.content-type: {OURS}"),
        (
            {"headers": {"X-A": "1"}, "header_files": {"x-a": "f"}},
            "header_files.x-a: expected each header once",
        ),
        (
            {"token_file": "t", "header_files": {"authorization": "f"}},
            "header_files.authorization: expected each header once",
        ),
        ({"header_files": {"X-A": ""}}, "header_files.X-A: expected a file, got nothing"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_no_secret_is_repeated(link: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(UplinkSettings, {**GIVEN, "link": {"kind": "http", "url": "https://far/in", **link}}, "site")
    assert caught.value.problems == (f"site: $.link: {problem}",)
    assert "hush" not in str(caught.value)


def test_a_login_that_is_no_bearer_token_comes_from_a_file() -> None:
    link = {"kind": "http", "url": "https://far/in", "header_files": {"Authorization": "basic"}}
    assert isinstance(parse(UplinkSettings, {**GIVEN, "link": link}, "site").link, HttpLink)


@pytest.mark.parametrize(
    ("url", "parts", "shown"),
    [
        ("https://far", ("https", "far", 443, "/"), "https://far/"),
        ("http://far:8080/a?code=1&b=%20", ("http", "far", 8080, "/a?code=1&b=%20"), "http://far:8080/a"),
        ("https://[::1]:443/a", ("https", "::1", 443, "/a"), "https://[::1]/a"),
        ("HTTP://FAR:80/A", ("http", "far", 80, "/A"), "http://far/A"),
    ],
)
def test_an_address_is_shown_without_its_query(
    url: str, parts: tuple[str, str, int, str], shown: str
) -> None:
    HttpLink(url=url)
    assert tuple(target(url)) == parts
    assert target(url).shown == shown
