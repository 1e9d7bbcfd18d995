"""Headers arrive as they were sent, are found in any case, and never break a reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.errors import InvalidArgument
from busmicro.headers import (
    CONTENT_TYPE,
    FIND_CONTENT_TYPE,
    FIND_TIMEOUT,
    TIMEOUT,
    VERSION_LINE,
    Headers,
    check,
    decode_text,
    encode_lines,
    encode_text,
    find,
    parse,
)

PRINTABLE = "".join(map(chr, range(33, 127)))
NAMES = st.text(PRINTABLE.replace(":", "").replace('"', ""), min_size=1, max_size=20)
VALUES = st.text(PRINTABLE + " \t", max_size=40).filter(lambda value: value == value.strip())


def block(items: dict[str, str]) -> bytes:
    return VERSION_LINE + encode_lines(items.items()) + b"\r\n"


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_block_read_back_holds_what_was_sent(items: dict[str, str]):
    """A header that may be sent arrives with the same name and the same value."""
    assert parse(block(items)) == items


@given(st.binary(max_size=200))
def test_reading_a_block_never_fails(garbage: bytes):
    """Whatever another client puts where the headers are, it harms nobody who reads them."""
    found = parse(garbage)

    assert all(isinstance(part, str) for item in found.items() for part in item)
    assert len(Headers(garbage)) == len(found)


@given(
    st.lists(st.sampled_from([b"NATS/1.0", b"\r\n", b"Bus-Timeout:", b"a: b", b":", b" 5", b""]))
)
def test_reading_what_nearly_is_a_block_never_fails(pieces: list[bytes]):
    """A block that is cut off or mixed up is read as far as it goes."""
    joined = b"".join(pieces)

    parse(joined)
    find(joined, joined.lower(), FIND_TIMEOUT)


@given(
    items=st.dictionaries(NAMES, VALUES, max_size=4),
    name=st.sampled_from([TIMEOUT, TIMEOUT.lower(), TIMEOUT.upper(), "X-Other"]),
    value=VALUES,
    cut=st.sampled_from([0, 2, 4]),
)
def test_quick_search_agrees_with_a_full_reading(
    items: dict[str, str], name: str, value: str, cut: int
):
    """The deadline that the fast search sees is the deadline that a wrapper reads."""
    items = {k: v for k, v in items.items() if k.casefold() != TIMEOUT.casefold()}
    whole = block({**items, name: value})
    received = whole[: len(whole) - cut]

    quick = find(received, received.lower(), FIND_TIMEOUT)

    assert quick.decode() == Headers(received).get(TIMEOUT, "")


def test_quick_search_takes_the_last_of_repeated_headers():
    """Where a header comes twice, both ways of reading take the last one."""
    received = VERSION_LINE + b"Content-Type: a\r\nContent-Type: b\r\n\r\n"

    assert find(received, received.lower(), FIND_CONTENT_TYPE) == b"b"
    assert Headers(received)[CONTENT_TYPE] == "b"


def test_quick_search_does_not_find_a_header_inside_a_value():
    """A value that looks like a header is not taken for one."""
    received = VERSION_LINE + b"X-Note: bus-timeout: 5\r\n\r\n"

    assert find(received, received.lower(), FIND_TIMEOUT) == b""


@pytest.mark.parametrize("name", ["", " ", "a b", "a:b", "é", "a\r\n", "a\n", 'a"', "\x7f"])
def test_name_that_would_not_arrive_is_refused(name: str):
    """A wrong header name is told to whoever sets it, before anything is sent."""
    with pytest.raises(InvalidArgument, match="header name") as refused:
        check(name, "x")

    assert refused.value.not_run


@pytest.mark.parametrize("value", ["é", "a\r\nX: y", "a\n", "\x00", "\x7f"])
def test_value_that_would_not_arrive_is_refused(value: str):
    """A value cannot smuggle in another header or lose its accents on the way."""
    with pytest.raises(InvalidArgument, match="value of header X-Y") as refused:
        check("X-Y", value)

    assert "quote" in str(refused.value)


@pytest.mark.parametrize("value", [" a", "a ", "\ta", " "])
def test_value_that_would_lose_its_blanks_is_refused(value: str):
    """Blanks at the ends of a value do not arrive, so they are refused and not lost."""
    with pytest.raises(InvalidArgument, match="X-Y"):
        check("X-Y", value)


@given(st.text(max_size=500))
def test_any_text_fits_a_header_when_encoded(text: str):
    """An error message in any script, with line breaks and all, survives as a header."""
    encoded = encode_text(text)

    assert encoded.isascii()
    assert encoded.isprintable()
    if text.strip() == text and text.isprintable():
        assert decode_text(encoded) == text
    assert decode_text(encode_text(f"<{text}>")).startswith("<")


@given(st.text(st.characters(codec="utf-8"), max_size=512))
def test_encoded_text_read_back_is_the_same(text: str):
    """What `encode_text` wrote, `decode_text` reads."""
    assert decode_text(encode_text(text)) == text


@given(st.text(st.characters(codec="utf-8"), max_size=512))
def test_encoded_text_survives_the_wire(text: str):
    """A text in a header is the same text after the block was parsed, blanks at its ends too."""
    assert (
        decode_text(parse(VERSION_LINE + f"E: {encode_text(text)}\r\n\r\n".encode())["E"]) == text
    )


def test_text_that_unicode_does_not_know_still_fits_a_header():
    """Half a surrogate pair in an error message does not keep the caller without an answer."""
    assert encode_text("bad \ud800 char") == "bad ? char"


@given(st.text(max_size=50))
def test_decoding_a_text_never_fails(text: str):
    """A foreign service that does not percent-encode its message is still understood."""
    assert isinstance(decode_text(text), str)


def test_header_is_found_in_any_case():
    """A user need not know how another language writes a header name."""
    headers = Headers(VERSION_LINE + b"Bus-Caller: shop\r\n\r\n")

    assert headers["bus-caller"] == headers["BUS-CALLER"] == headers["Bus-Caller"] == "shop"
    assert "bus-CALLER" in headers
    assert headers.get("bus-other") is None


def test_header_set_in_another_case_replaces_the_first():
    """Setting a header never leaves two spellings of it behind."""
    headers = Headers({"Bus-Caller": "shop", "X": "1"})

    headers["bus-caller"] = "cart"

    assert dict(headers) == {"X": "1", "bus-caller": "cart"}


def test_deleted_header_is_gone_in_every_case():
    """Deleting a header works however it is spelt, and a second time says it is not there."""
    headers = Headers({"Bus-Caller": "shop"})

    del headers["BUS-CALLER"]

    assert not headers
    with pytest.raises(KeyError):
        del headers["Bus-Caller"]


SPELLINGS = st.sampled_from(["a", "A", "b", "B", "straße", "STRASSE"])
CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "del", "get"]), SPELLINGS, st.sampled_from("12"))
)


@given(st.dictionaries(SPELLINGS.map(str.casefold), st.just("0"), max_size=3), CHANGES)
def test_headers_are_a_dict_that_does_not_mind_case(
    items: dict[str, str], changes: list[tuple[str, str, str]]
):
    """Whatever is set, deleted and looked up, in whatever order, they hold what a dict would."""
    headers, plain = Headers(items), dict(items)
    for what, name, value in changes:
        folded = name.casefold()
        if what == "set":
            headers[name] = plain[folded] = value
        elif what == "del":
            assert headers.pop(name, None) == plain.pop(folded, None)
        else:
            assert headers.get(name) == plain.get(folded)
    assert {name.casefold(): value for name, value in headers.items()} == plain
    assert len(headers) == len(plain)


def test_copy_of_headers_changes_alone():
    """What one attempt adds to its headers, the next does not see."""
    first = Headers(VERSION_LINE + b"A: 1\r\n\r\n")
    second = first.copy()
    third = second.copy()
    second["A"] = "2"

    assert (first["A"], second["A"], third["A"]) == ("1", "2", "1")


def test_headers_are_not_filled_from_the_dict_they_were_made_of():
    """A dict given as headers stays the caller's own."""
    given_by_user = {"A": "1"}

    Headers(given_by_user)["B"] = "2"

    assert given_by_user == {"A": "1"}


def test_repr_of_headers_shows_names_and_no_values():
    """A token in a header does not end up in a log by accident."""
    assert "secret" not in repr(Headers({"Authorization": "secret"}))
    assert "Authorization" in repr(Headers({"Authorization": "secret"}))
