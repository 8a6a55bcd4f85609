"""What the answer of an HTTP server means."""

from datetime import UTC, datetime

import pytest

from skerry.errors import LinkDown, Rejected
from skerry.uplink.answers import Answer, excerpt, judge, meaning, retry_after_s

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [
        ((200, 201, 202, 204, 207), "taken"),
        ((301, 302, 304, 307, 308), "moved"),
        ((408, 425, 429, 500, 502, 503, 504, 599), "later"),
        ((401, 403, 407), "credentials"),
        ((404, 405, 410, 415, 421, 426), "address"),
        ((400, 406, 409, 411, 413, 414, 422, 431, 451, 499), "refused"),
        ((101, 199, 600, 999), "odd"),
    ],
)
def test_each_status_has_one_meaning(statuses: tuple[int, ...], wanted: str) -> None:
    assert {meaning(status) for status in statuses} == {wanted}


@pytest.mark.parametrize(
    ("value", "date", "wanted"),
    [
        ("120", "", 120),
        (" 7 ", "", 7),
        ("0", "", 0),
        ("", "", 0),
        ("-5", "", 0),
        ("1.5", "", 0),
        ("soon", "", 0),
        ("9" * 400, "", 366 * 86400),
        ("Sun, 01 Mar 2026 12:01:30 GMT", "", 90),
        ("Sunday, 01-Mar-26 12:01:30 GMT", "", 90),
        ("Sun Mar  1 12:01:30 2026", "", 90),
        ("Sun, 01 Mar 2026 11:00:00 GMT", "", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "", 366 * 86400),
        ("Sun, 99 Mar 2026 12:01:30 GMT", "", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, date: str, wanted: float) -> None:
    assert retry_after_s(value, date, NOW) == wanted


def test_a_date_to_retry_at_is_measured_by_the_clock_of_who_says_it() -> None:
    """Ours may be years off."""
    wrong = datetime(1970, 1, 1, tzinfo=UTC)
    until, date = "Sun, 01 Mar 2026 12:01:30 GMT", "Sun, 01 Mar 2026 12:01:00 GMT"
    assert retry_after_s(until, date, wrong) == 30
    assert retry_after_s(until, "yesterday", NOW) == 90


def test_what_was_taken_raises_nothing() -> None:
    judge("far", Answer(204), NOW)


@pytest.mark.parametrize(
    ("answer", "text", "asked_s"),
    [
        (Answer(503), "far: answered 503 (try again later)", 0),
        (
            Answer(429, retry_after="30"),
            "far: answered 429, asks to be left alone for 30 s (try again later)",
            30,
        ),
        (
            Answer(401, body=b"who?"),
            (
                "far: the credentials are refused with 401 "
                "(renew link.token_file, link.header_files or link.tls.certificate; they are read again)"
            ),
            0,
        ),
        (
            Answer(302, location="https://me:pw@login/page?code=1#x"),
            (
                "far: answered 302, a redirect to https://login/page, which is not followed "
                "(put the address into link.url)"
            ),
            0,
        ),
        (
            Answer(307),
            "far: answered 307, a redirect, which is not followed (put the address into link.url)",
            0,
        ),
        (Answer(404), "far: answered 404 (check link.url, link.format and link.compression)", 0),
        (Answer(101), "far: answered 101 (try again later)", 0),
    ],
)
def test_a_far_end_that_may_take_it_later_is_down(answer: Answer, text: str, asked_s: float) -> None:
    with pytest.raises(LinkDown) as caught:
        judge("far", answer, NOW)
    assert str(caught.value) == text
    assert caught.value.retry_after_s == asked_s


def test_a_refusal_says_what_the_far_end_says() -> None:
    with pytest.raises(Rejected, match=r"^far: refused with 422: no such type$"):
        judge("far", Answer(422, body=b"no such\n  type\x00\n"), NOW)
    with pytest.raises(Rejected, match=r"^far: refused with 400$"):
        judge("far", Answer(400), NOW)


def test_an_excerpt_is_one_short_printable_line() -> None:
    assert excerpt(b"a\r\nb\x1b[31m\xff c") == "a b [31m� c"
    assert excerpt(b"x" * 100_000) == "x" * 160 + "..."
