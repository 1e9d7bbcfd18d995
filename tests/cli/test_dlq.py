"""`busmicro dlq`: what no handler could handle, and putting it back."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment import PYTHONPATH

_BILLING = '''
from pathlib import Path
from pydantic import BaseModel
from busmicro import Reject, Service, Stream, Topic

class OrderPaid(BaseModel):
    order: str

stream = Stream("BILLS", subjects=["bills.>"], max_bytes=10**6)
paid = Topic("bills.paid", OrderPaid, stream=stream)
billing = Service("billing")

@billing.subscribe(paid, group="billing")
async def on_paid(event: OrderPaid) -> None:
    """Refuse what comes while the shop is closed."""
    if Path("closed").exists():
        raise Reject(f"order {event.order} came while we are closed")
    with Path("handled").open("a") as file:
        file.write(f"{event.order}\\n")
'''


@pytest.fixture(scope="module")
def shop(home: Path, url: str) -> Iterator[Path]:
    """Run a service that refuses events while a file `closed` is there; the folder it looks in."""
    (home / "billing.py").write_text(_BILLING)
    (home / "closed").touch()
    env = {**os.environ, "BUSMICRO_NATS_URL": url, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "busmicro", "run", "billing:billing"]
    process = subprocess.Popen(
        command, cwd=home, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert any("serves as node" in line for line in process.stderr)
    yield home
    process.terminate()
    process.communicate(timeout=20)


@pytest.fixture
def die(shop, quick, eventually):
    """Publish events that are refused, on an empty table; their numbers as dead letters."""
    (shop / "closed").touch()
    (shop / "handled").write_text("")
    quick("dlq", "drop", "--all", "--yes")

    def publish(*bodies: str, words: tuple[str, ...] = ()) -> list[int]:
        for body in bodies:
            quick("publish", "bills.paid", body, "--raw", *words)
        eventually(lambda: len(_letters(quick)) == len(bodies))
        return [letter["number"] for letter in _letters(quick)]

    return publish


def _letters(quick) -> list[dict[str, object]]:
    return json.loads(quick("dlq", "list", "--json"))


_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_HEADERS = ("-H", f"traceparent: 00-{_TRACE}-00f067aa0ba902b7-01", "-H", "X-Tenant: blue")


def test_dead_letters_are_listed(busmicro, die):
    """People see which event died where, why, after how many attempts, in which trace."""
    (number,) = die('{"order": "17"}', words=_HEADERS)

    shown = busmicro("dlq", "list")

    heading, line = shown.stdout.splitlines()
    assert heading.split() == [
        "NUMBER",
        "WHEN",
        "STREAM",
        "CONSUMER",
        "SUBJECT",
        "ATTEMPTS",
        "CAUSE",
        "TRACE",
    ]
    assert line.split()[0] == str(number)
    assert line.split()[2:6] == ["BILLS", "billing-bills-paid", "bills.paid", "1"]
    assert "failed_precondition: order 17 came while we are closed" in line
    assert line.endswith(_TRACE)


def test_dead_letters_as_json_have_their_shape(quick, die):
    """`--json` lists the same facts, for programs."""
    (number,) = die('{"order": "17"}', words=(*_HEADERS, "--id", "order-17"))

    (letter,) = _letters(quick)

    assert set(letter) == {
        *("number", "died", "stream", "consumer", "subject", "sequence", "attempts", "code"),
        *("reason", "event_id", "trace_id"),
    }
    assert (letter["number"], letter["stream"], letter["subject"]) == (
        number,
        "BILLS",
        "bills.paid",
    )
    assert (letter["consumer"], letter["attempts"]) == ("billing-bills-paid", 1)
    assert (letter["code"], letter["trace_id"]) == ("failed_precondition", _TRACE)
    assert letter["event_id"].endswith("order-17")


def test_letters_are_chosen_by_stream_and_consumer(quick, die):
    """`--stream`, `--consumer` and `--most` leave the others out."""
    numbers = die('{"order": "1"}', '{"order": "2"}', '{"order": "3"}')

    def listed(*words: str) -> list[int]:
        return [one["number"] for one in json.loads(quick("dlq", "list", "-j", *words))]

    assert listed("--stream", "BILLS", "--consumer", "billing-bills-paid") == numbers
    assert listed("--stream", "OTHER") == []
    assert listed("--consumer", "other") == []
    assert listed("--most", "2") == numbers[1:]


def test_letters_of_a_namespace_have_plain_names(busmicro, quick, die, start, url, eventually):
    """In a namespace, stream and subject have the names that the code gives them."""
    die()
    words = ["-n", "branch"]
    node = start("run", "billing:billing", *words, BUSMICRO_NATS_URL=url)
    assert any("serves as node" in line for line in node.stderr)
    quick("publish", "bills.paid", "order=17", *words)

    def listed() -> list[dict[str, object]]:
        return json.loads(quick("dlq", "list", "--stream", "BILLS", "-j", *words))

    eventually(lambda: len(listed()) == 1)
    (letter,) = listed()
    assert (letter["stream"], letter["subject"]) == ("BILLS", "bills.paid")
    assert busmicro("dlq", "replay", str(letter["number"]), *words).returncode == 0
    assert _letters(quick) == []


def test_letter_is_shown_whole(busmicro, quick, die):
    """`show` has the headers that the event came with, and its decoded body."""
    (number,) = die('{"order": "17"}', words=_HEADERS)

    people = busmicro("dlq", "show", str(number))
    shown = json.loads(busmicro("dlq", "show", str(number), "--json").stdout)

    (listed,) = _letters(quick)
    assert set(shown) == {*listed, "details", "headers", "content_type", "body", "payload"}
    assert (shown["body"], shown["payload"]) == ({"order": "17"}, None)
    assert shown["headers"]["X-Tenant"] == "blue"
    assert not any(name.startswith("Bus-Dead-") for name in shown["headers"])
    assert "X-Tenant: blue" in people.stdout
    assert '{"order": "17"}' in people.stdout


def test_letter_that_does_not_decode_says_what_is_wrong(busmicro, die):
    """Poison is shown with what did not validate, and with all its bytes."""
    (number,) = die("\x1b{poison")

    people = busmicro("dlq", "show", str(number))
    shown = json.loads(busmicro("dlq", "show", str(number), "-j").stdout)

    assert shown["code"] == "invalid_argument"
    assert (shown["body"], base64.b64decode(shown["payload"])) == (None, b"\x1b{poison")
    assert r"\x1b{poison" in people.stdout
    assert "\x1b" not in people.stdout


def test_replayed_event_is_handled(busmicro, quick, die, shop, eventually):
    """`replay` puts an event back; it is handled, and is a dead letter no more."""
    (number,) = die('{"order": "17"}')
    (shop / "closed").unlink()

    shown = busmicro("dlq", "replay", str(number), "--json")

    (done,) = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert set(done) == {"number", "stream", "sequence", "duplicate"}
    assert (done["number"], done["stream"]) == (number, "BILLS")
    assert f"{number} is back in BILLS as {done['sequence']}" in shown.stderr
    assert _letters(quick) == []
    eventually(lambda: (shop / "handled").read_text() == "17\n")


def test_all_letters_are_replayed(busmicro, quick, die, shop, eventually):
    """`replay --all` puts back what is dead now, in order."""
    die('{"order": "1"}', '{"order": "2"}', '{"order": "3"}')
    (shop / "closed").unlink()

    assert busmicro("dlq", "replay", "--all").returncode == 0

    assert _letters(quick) == []
    eventually(lambda: len((shop / "handled").read_text().splitlines()) == 3)


def test_replay_of_what_dies_again_ends(busmicro, quick, die, eventually):
    """An event that dies again is a new dead letter, and `--all` does not run after it."""
    numbers = die('{"order": "1"}', '{"order": "2"}')

    shown = busmicro("dlq", "replay", "--all", "-j")

    assert [one["number"] for one in json.loads(shown.stdout)] == numbers
    eventually(lambda: len(_letters(quick)) == 2)
    assert not {letter["number"] for letter in _letters(quick)} & set(numbers)


def test_dropped_letters_are_gone(busmicro, quick, die):
    """`drop` forgets a letter, and only that one; without a terminal it does not ask."""
    first, second = die('{"order": "1"}', '{"order": "2"}')

    shown = busmicro("dlq", "drop", str(first), "--json")

    assert json.loads(shown.stdout) == [{"number": first, "dropped": True}]
    assert [letter["number"] for letter in _letters(quick)] == [second]


@pytest.mark.parametrize(("typed", "code", "left"), [(b"n\n", 1, 1), (b"y\n", 0, 0)])
def test_person_is_asked_before_letters_are_dropped(home, url, quick, die, typed, code, left):
    """On a terminal `drop` asks; no leaves everything as it is."""
    (number,) = die('{"order": "1"}')
    ours, theirs = pty.openpty()
    env = {**os.environ, "BUSMICRO_NATS_URL": url, "PYTHONPATH": PYTHONPATH}
    process = subprocess.Popen(
        [sys.executable, "-m", "busmicro", "dlq", "drop", str(number)],
        env=env,
        cwd=home,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    os.write(ours, typed)
    _out, said = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)

    assert process.returncode == code, said
    assert b"drop 1 dead letter for good?" in said
    assert len(_letters(quick)) == left


@pytest.mark.parametrize("verb", ["show", "replay", "drop"])
def test_letter_that_is_not_there_is_not_found(busmicro, quick, die, verb):
    """A wrong number is exit code 69; the others that were named are dealt with."""
    (number,) = die('{"order": "1"}')

    words = ["999999"] if verb == "show" else ["999999", str(number)]
    shown = busmicro("dlq", verb, *words)

    assert shown.returncode == 69
    assert "there is no dead letter 999999" in shown.stderr
    assert "try: busmicro dlq list" in shown.stderr
    if verb == "drop":
        assert _letters(quick) == []


def test_no_dead_letters_is_good_news(busmicro, die):
    """An empty table is exit code 0, and an empty list."""
    for words in (["list"], ["replay", "--all"], ["drop", "--all"]):
        shown = busmicro("dlq", *words, "-j")
        assert (shown.returncode, shown.stdout) == (0, "[]\n")
        assert "there are no dead letters" in shown.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["replay"], "say which"),
        (["drop", "1", "--all"], "say which"),
        (["drop", "1", "--stream", "BILLS"], "go with --all"),
        (["show", "0"], "is not in the range"),
        (["shwo", "1"], "did you mean show"),
    ],
)
def test_wrong_usage_of_dlq_ends_with_2(busmicro, words, said):
    """What cannot be meant is refused before anything is done."""
    shown = busmicro("dlq", *words)

    assert shown.returncode == 2
    assert said in shown.stderr


@pytest.mark.parametrize("verb", ["list", "show", "replay", "drop"])
def test_every_verb_of_dlq_has_help(quick, verb):
    """`--help` explains each."""
    assert "Usage: " in quick("dlq", verb, "--help")


@pytest.mark.parametrize(
    "words", [["-n", "x", "dlq", "list"], ["dlq", "-n", "x", "list"], ["dlq", "list", "-n", "x"]]
)
def test_global_options_stand_anywhere(busmicro, die, words):
    """An option means the same before `dlq`, after it and at the end: here, another namespace."""
    die('{"order": "1"}')

    shown = busmicro(*words)

    assert (shown.returncode, shown.stdout) == (0, "")
    assert "there are no dead letters" in shown.stderr
