"""`busmicro publish`, `busmicro subscribe` and `busmicro streams`."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import uuid
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from busmicro import Client
from busmicro.cli import cli
from busmicro.pubsub import Declarations, Stream
from busmicro.transport import JetStream


@pytest.fixture
def stream(keep: Callable[..., str]) -> str:
    """Have a stream of the test's own; its name, which is also how its subjects begin."""
    return keep()


@pytest.fixture
def keep(url: str) -> Callable[..., str]:
    """Make streams, as a service that declares them does."""

    async def declare(name: str, namespace: str, **more: bool) -> None:
        stream = Stream(name, subjects=[f"{name}.>"], max_bytes=10**6, **more)
        async with Client(url, namespace=namespace) as client:
            jetstream = JetStream(client.bus.transport, client.bus.replies)
            await Declarations(jetstream, client.bus.subjects).ensure_stream(stream)

    def make(*, namespace: str = "", **more: bool) -> str:
        name = f"s{uuid.uuid4().hex[:8]}"
        asyncio.run(declare(name, namespace, **more))
        return name

    return make


@pytest.fixture
def listen(start, url):
    """Start `subscribe`; it listens when this returns."""

    def begin(*args: str, **env: str):
        process = start("subscribe", *args, **{"BUSMICRO_NATS_URL": url, **env})
        said = process.stderr.readline()
        assert said.startswith("listening to "), said + process.stderr.read()
        return process

    return begin


def _lines(printed: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed.splitlines()]


# --- publish ------------------------------------------------------------------------------------


def test_event_is_stored_and_that_is_said(busmicro, quick, stream):
    """People read where the event is; nothing is printed on stdout."""
    shown = busmicro("publish", f"{stream}.paid", "order=17", "amount:=30")

    assert (shown.returncode, shown.stdout) == (0, "")
    assert shown.stderr == f"stored in {stream} as 1\n"
    (line,) = _lines(quick("subscribe", f"{stream}.paid", "--from", "1", "--count", "1", "-j"))
    assert line["body"] == {"order": "17", "amount": 30}


@pytest.mark.parametrize("word", ["-", "@event.json"])
def test_event_is_read_from_stdin_and_files(busmicro, quick, home, stream, word):
    """`-` and `@file` are read as they are for a call."""
    (home / "event.json").write_text('{"order": "17"}')

    busmicro("publish", f"{stream}.paid", word, typed='{"order": "17"}')

    (line,) = _lines(quick("subscribe", f"{stream}.>", "--from", "first", "--count", "1", "-j"))
    assert line["body"] == {"order": "17"}


def test_publishing_as_json_has_its_shape(busmicro, stream):
    """`--json` tells stream and sequence, and how many there were."""
    shown = busmicro("publish", f"{stream}.paid", "{}", "--count", "3", "--json")

    assert json.loads(shown.stdout) == {
        "subject": f"{stream}.paid",
        "stream": stream,
        "sequence": 3,
        "published": 3,
        "duplicates": 0,
    }
    assert f"stored 3 in {stream}, the last as 3" in shown.stderr


def test_event_with_a_known_id_is_not_stored_again(busmicro, quick, stream):
    """`--id` twice is one event, and the second time that is said."""
    words = ["publish", f"{stream}.paid", "{}", "--id", "order-17"]
    quick(*words)

    again = busmicro(*words, "--json")

    assert again.returncode == 0
    assert f"{stream} has it already, as 1" in again.stderr
    assert json.loads(again.stdout)["duplicates"] == 1


def test_event_that_nobody_keeps_says_so(busmicro, listen):
    """Without a stream it reaches who listens, and a warning says that this is all."""
    subject = f"nobody.keeps.{uuid.uuid4().hex}"
    tail = listen(subject, "--count", "1", "--json")

    shown = busmicro("publish", subject, "x=1", "--json")

    assert shown.returncode == 0
    assert "no stream keeps" in shown.stderr
    assert (json.loads(shown.stdout)["stream"], json.loads(shown.stdout)["sequence"]) == (None,) * 2
    assert json.loads(tail.stdout.readline())["body"] == {"x": "1"}
    assert tail.wait(10) == 0


def test_headers_and_bytes_are_sent(quick, stream):
    """`-H` sends a header; `--raw` sends what is not JSON as it is."""
    quick("publish", f"{stream}.raw", "-", "--raw", "-H", "X-Tenant: blue", typed="not JSON")

    (line,) = _lines(quick("subscribe", f"{stream}.>", "--from", "first", "--count", "1", "-j"))
    assert line["headers"]["X-Tenant"] == "blue"
    assert line["content_type"] == "application/octet-stream"
    assert base64.b64decode(line["payload"]) == b"not JSON"


@pytest.mark.parametrize("when", [["--after", "1"], ["--at", "SOON"]])
def test_event_for_later_comes_later(busmicro, listen, stream, when):
    """`--after` and `--at` leave the publishing to the server."""
    from datetime import UTC, datetime, timedelta

    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    tail = listen(f"{stream}.paid", "--from", "new", "--count", "1", "--json")

    shown = busmicro(
        "publish", f"{stream}.paid", "order=17", *(soon if w == "SOON" else w for w in when)
    )

    assert shown.returncode == 0, shown.stderr
    assert f"stored in {stream}, to be published a" in shown.stderr
    assert json.loads(tail.stdout.readline())["body"] == {"order": "17"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["STREAM.paid", "--stream", "STREAMX"], 69, ["there is no stream", "did you mean STREAM"]),
        (["elsewhere.paid", "--stream", "STREAM"], 73, ["does not keep", "it keeps STREAM.>"]),
        (
            ["elsewhere.paid", "--after", "1"],
            73,
            ["no stream keeps", "--after", "busmicro streams"],
        ),
        (["elsewhere.paid", "--id", "7"], 73, ["no stream keeps"]),
        (["orders.*"], 67, ["not one subject", "busmicro publish --help"]),
        (["rpc.shop"], 2, ["busmicro's own"]),
        (
            ["STREAM.paid", "-H", "X-Name: gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"],
            67,
            ["ASCII"],
        ),
        (["STREAM.paid", "--after", "1", "--at", "2030-01-01"], 2, ["exclude each other"]),
        (["STREAM.paid", "--at", "tomorrow"], 2, ["is no time"]),
        (["STREAM.paid", "{bad"], 2, ["not JSON"]),
    ],
)
def test_event_that_cannot_be_published_says_why(busmicro, stream, words, code, said):
    """An error says what, why and what to try, and nothing is published."""
    shown = busmicro("publish", *(word.replace("STREAM", stream) for word in words))

    assert shown.returncode == code, shown.stderr
    assert not shown.stdout
    assert all(text.replace("STREAM", stream) in shown.stderr for text in said), shown.stderr


def test_forbidden_event_is_not_called_published(busmicro, start, nowhere, tmp_path):
    """An event that the server refuses is exit code 71, though nobody keeps it."""
    config = tmp_path / "nats.conf"
    denied = '{ publish: { deny: "secret.>" } }'
    user = f"{{ user: ann, password: x, permissions: {denied} }}"
    config.write_text(f"authorization {{ users: [{user}] }}")
    server = start("server", "--port", nowhere.rpartition(":")[2], "--config", str(config))
    assert server.stdout.readline().strip() == nowhere

    words = ["--user", "ann", "--password", "x", "-s", nowhere]
    shown = busmicro("publish", "secret.plan", "{}", *words)

    assert shown.returncode == 71
    assert "secret.plan" in shown.stderr
    assert busmicro("publish", "open.plan", "{}", *words).returncode == 0


def test_without_jetstream_events_reach_who_listens(busmicro, start, nowhere):
    """Where nothing can be kept, publishing works, and what needs a stream says what is missing."""
    server = start("server", "--no-jetstream", "--port", nowhere.rpartition(":")[2])
    assert server.stdout.readline().strip() == nowhere
    env = {"BUSMICRO_NATS_URL": nowhere}

    assert busmicro("publish", "orders.paid", "{}", **env).returncode == 0
    for words in (
        ["streams"],
        ["subscribe", "orders.paid", "--from", "first"],
        ["publish", "orders.paid", "--stream", "ORDERS"],
        ["dlq", "list"],
    ):
        shown = busmicro(*words, **env)
        assert (shown.returncode, shown.stdout) == (78, ""), words
        assert "JetStream is not enabled" in shown.stderr
        assert "try: busmicro server" in shown.stderr


# --- subscribe ----------------------------------------------------------------------------------


def test_tail_prints_events_until_interrupted(quick, listen):
    """Each event is a line with its time, subject and body; Ctrl-C ends it with 130."""
    subject = f"live.{uuid.uuid4().hex}"
    tail = listen(f"{subject}.*", "--headers")
    quick("publish", f"{subject}.a", "x=1", "-H", "X-Tenant: blue")

    line, header = tail.stdout.readline(), tail.stdout.readline()
    tail.send_signal(signal.SIGINT)

    assert line.split("  ")[1:] == [f"{subject}.a", '{"x": "1"}\n']
    assert header.strip() == "X-Tenant: blue"
    assert tail.wait(10) == 130
    assert "Traceback" not in tail.stderr.read()


def test_reader_that_leaves_ends_the_tail(quick, listen):
    """`| head` ends it without a word."""
    subject = f"live.{uuid.uuid4().hex}"
    tail = listen(subject)
    quick("publish", subject, "x=1")
    tail.stdout.readline()
    tail.stdout.close()
    quick("publish", subject, "x=2", "--count", "3")

    assert tail.wait(10) == 0
    assert not tail.stderr.read()


def test_tail_as_json_has_its_shape(quick, stream):
    """`--json` prints one object a line; what comes from a stream says where it lies there."""
    quick("publish", f"{stream}.paid", "x=1", "--id", "17")

    (line,) = _lines(quick("tail", f"{stream}.>", "--from", "first", "--wait", "1", "--json"))

    assert set(line) == {
        *("subject", "headers", "content_type", "body", "payload", "stream", "sequence"),
        *("attempt", "time"),
    }
    assert (line["subject"], line["stream"], line["sequence"]) == (f"{stream}.paid", stream, 1)
    assert (line["body"], line["payload"], line["attempt"]) == ({"x": "1"}, None, 1)
    assert line["headers"]["ce-id"] == "17"
    assert line["time"].endswith("Z")


def test_tail_says_how_many_events_it_dropped(quick, listen):
    """What comes more quickly than it is printed is not silently missing."""
    subject = f"live.{uuid.uuid4().hex[:4]}"
    tail = listen(subject, "--wait", "2")
    tail.send_signal(signal.SIGSTOP)
    quick("publish", subject, "1", "--count", "20000")
    tail.send_signal(signal.SIGCONT)

    printed, said = tail.communicate(timeout=30)

    dropped = int(said.splitlines()[-1].partition(" events were dropped")[0])
    assert dropped
    assert len(printed.splitlines()) + dropped == 20_000


def test_event_that_does_not_decode_does_not_end_the_tail(quick, listen):
    """Bytes that are nothing are shown escaped, and the next event is shown too."""
    subject = f"live.{uuid.uuid4().hex}"
    people, programs = listen(subject, "--count", "2"), listen(subject, "--count", "2", "-j")
    quick("publish", subject, "-", "--raw", typed="\x1b[2J{")
    quick("publish", subject, "x=1")

    assert [process.wait(10) for process in (people, programs)] == [0, 0]
    assert r"\x1b[2J{" in people.stdout.readline()
    first, second = (json.loads(programs.stdout.readline()) for _ in range(2))
    assert (first["body"], base64.b64decode(first["payload"])) == (None, b"\x1b[2J{")
    assert second["body"] == {"x": "1"}


@pytest.mark.parametrize(
    ("where", "expected"), [("first", [1, 2, 3]), ("2", [2, 3]), ("1h", [1, 2, 3]), ("new", [])]
)
def test_tail_begins_where_it_is_told(busmicro, quick, stream, where, expected):
    """`--from` begins with all that is kept, a number, a time, or what is new; `--wait` ends it."""
    quick("publish", f"{stream}.paid", "{}", "--count", "3")

    shown = busmicro("subscribe", f"{stream}.paid", "--from", where, "--wait", "0.5", "-j")

    assert shown.returncode == 0
    assert [line["sequence"] for line in _lines(shown.stdout)] == expected


def test_tail_begins_at_a_time(quick, stream):
    """An ISO time lies between what was stored before and after it."""
    quick("publish", f"{stream}.paid", "x=1")
    words = ["subscribe", f"{stream}.paid", "--wait", "0.5", "-j", "--from"]
    (first,) = _lines(quick(*words, "first"))
    quick("publish", f"{stream}.paid", "x=2")
    second = _lines(quick(*words, "2"))[0]["time"]

    assert first["time"] < second
    assert [line["sequence"] for line in _lines(quick(*words, second))] == [2]


def test_tail_leaves_nothing_behind(busmicro, quick, stream, eventually):
    """Reading a stream makes no lasting consumer and takes no event away."""
    quick("publish", f"{stream}.paid", "x=1")
    busmicro("subscribe", f"{stream}.paid", "--from", "first", "--count", "1")

    eventually(lambda: not json.loads(quick("streams", stream, "-j"))["consumers"])
    assert json.loads(quick("streams", stream, "-j"))["events"] == 1


def test_work_queue_is_not_emptied_by_looking(busmicro, quick, keep):
    """Where reading takes events away, `--from` is refused, unless a group is named."""
    stream = keep(work_queue=True)
    quick("publish", f"{stream}.paid", "x=1")
    words = ["subscribe", f"{stream}.paid", "--from", "first", "--count", "1"]

    refused = busmicro(*words)
    left = json.loads(quick("streams", stream, "-j"))
    taken = busmicro(*words, "--group", "hands")

    assert refused.returncode == 73
    assert "is a work queue" in refused.stderr
    assert (left["events"], left["retention"]) == (1, "workqueue")
    assert '{"x": "1"}' in taken.stdout
    assert json.loads(quick("streams", stream, "-j"))["events"] == 0


def test_group_goes_on_where_it_was(quick, stream):
    """A group that reads a stream gets each event once, over several runs."""
    quick("publish", f"{stream}.paid", "{}", "--count", "3")
    words = ["subscribe", f"{stream}.paid", "--stream", stream, "--group", "audit", "-j"]

    first = _lines(quick(*words, "--count", "2"))
    rest = _lines(quick(*words, "--wait", "1"))

    assert [[line["sequence"] for line in lines] for lines in (first, rest)] == [[1, 2], [3]]


def test_group_shares_the_events(quick, listen):
    """Of two tails in a group, each event reaches one."""
    subject = f"live.{uuid.uuid4().hex}"
    both = [listen(subject, "--group", "g", "--wait", "2", "-j") for _ in range(2)]
    quick("publish", subject, "{}", "--count", "20")

    assert sum(len(process.communicate(timeout=15)[0].splitlines()) for process in both) == 20


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["elsewhere.paid", "--from", "first"], 73, ["no stream keeps elsewhere.paid"]),
        (["STREAM.paid", "--stream", "STREAMX"], 69, ["there is no stream", "did you mean STREAM"]),
        ([">", "--from", "first"], 73, ["streams keep some of >", "--stream STREAM"]),
        (["STREAM.paid", "--from", "last"], 2, ["is no beginning"]),
        (["a..b"], 2, ["no word of a subject"]),
        (["STREAM.paid", "--group", "a b"], 2, ["group 'a b'"]),
    ],
)
def test_tail_that_cannot_be_says_why(busmicro, keep, words, code, said):
    """What cannot be listened to is refused, with what to try."""
    stream, _other = keep(), keep()

    shown = busmicro("subscribe", *(word.replace("STREAM", stream) for word in words))

    assert shown.returncode == code, shown.stderr
    assert all(text.replace("STREAM", stream) in shown.stderr for text in said), shown.stderr


def test_namespace_is_left_out_of_what_is_shown(quick, keep):
    """In a namespace, streams and subjects have the names that the code gives them."""
    stream = keep(namespace="branch")
    words = ["-n", "branch", "-j"]

    published = json.loads(quick("publish", f"{stream}.paid", "x=1", *words))
    (line,) = _lines(quick("subscribe", f"{stream}.>", "--from", "1", "--count", "1", *words))
    listed = json.loads(quick("streams", *words))

    assert published["stream"] == line["stream"] == stream
    assert line["subject"] == f"{stream}.paid"
    assert f"{stream}.>" in next(one for one in listed if one["name"] == stream)["subjects"]
    assert f"branch-{stream}" in quick("streams")


# --- streams ------------------------------------------------------------------------------------


def test_streams_are_listed(busmicro, quick, stream):
    """People see what is kept, how much of it, and its limits."""
    quick("publish", f"{stream}.paid", "{}", "--count", "2")

    shown = busmicro("streams")

    line = next(line for line in shown.stdout.splitlines() if line.startswith(stream))
    assert shown.stdout.startswith("NAME")
    assert f"{stream}.>" in line
    assert "7.0 d, 976.6 KiB" in line
    assert "KV_" not in shown.stdout


def test_streams_as_json_have_their_shape(quick, stream):
    """`--json` has every setting; with a name its consumers too."""
    quick("publish", f"{stream}.paid", "{}", "--count", "2")

    listed = json.loads(quick("streams", "--json"))
    one = json.loads(quick("streams", stream, "--json"))

    fields = {
        *("name", "subjects", "events", "bytes", "first", "last", "oldest", "newest"),
        *("consumer_count", "retention", "max_age", "max_bytes", "max_events", "discard"),
        *("storage", "replicas", "dedup_window"),
    }
    assert set(next(other for other in listed if other["name"] == stream)) == fields
    assert set(one) == {*fields, "consumers"}
    assert (one["events"], one["first"], one["last"]) == (2, 1, 2)
    assert (one["max_age"], one["max_bytes"], one["max_events"]) == (604800, 10**6, None)
    assert (one["dedup_window"], one["storage"], one["discard"]) == (120, "file", "old")


def test_stream_shows_who_is_behind(quick, stream, listen):
    """A consumer that has not been given its events is seen to be behind."""
    tail = listen(f"{stream}.paid", "--stream", stream, "--group", "audit", "--count", "1")
    quick("publish", f"{stream}.paid", "{}")
    assert tail.wait(10) == 0
    quick("publish", f"{stream}.paid", "{}", "--count", "4")

    (consumer,) = json.loads(quick("streams", stream, "--json"))["consumers"]

    assert set(consumer) == {
        *("name", "durable", "subjects", "pending", "ack_pending", "redelivered", "delivered"),
        *("max_deliver", "ack_wait"),
    }
    assert (consumer["name"], consumer["pending"]) == (f"audit-{stream}-paid", 4)
    assert consumer["durable"]
    assert consumer["name"] in quick("streams", stream)


@pytest.mark.parametrize(("name", "code"), [("nostream", 69), ("a b", 67)])
def test_stream_that_is_not_there_is_not_found(busmicro, name, code):
    """An unknown name is said to be unknown; one that cannot be is never asked for."""
    shown = busmicro("streams", name)

    assert shown.returncode == code
    assert not shown.stdout


def test_completion_knows_streams(busmicro, stream):
    """Names of streams are those that are there now."""
    env = {"_BUSMICRO_COMPLETE": "bash_complete", "COMP_WORDS": f"busmicro streams {stream[:5]}"}

    shown = busmicro(COMP_CWORD="2", **env)

    assert f"plain,{stream}" in shown.stdout


@pytest.mark.parametrize("words", [["publish"], ["subscribe"], ["subscribe", "x", "--count", "0"]])
def test_wrong_usage_of_events_ends_with_2(words):
    """What cannot be meant is refused before anything is sent."""
    assert CliRunner().invoke(cli, words).exit_code == 2
