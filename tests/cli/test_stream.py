"""`busmicro stream`: what goes in, what comes out, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from busmicro.cli import cli
from tests.cli.conftest import _environment

pytestmark = pytest.mark.usefixtures("chat")


@pytest.fixture
def begin(start, url):
    """Start `stream` with a stdin that stays open."""

    def begin(*args: str, **env: str) -> subprocess.Popen[str]:
        env.setdefault("BUSMICRO_NATS_URL", url)
        return start("stream", *args, stdin=subprocess.PIPE, **env)

    return begin


@pytest.fixture
def nothing_goes_on(quick, eventually) -> Callable[[], None]:
    """Wait until no handler of the service runs."""

    def wait() -> None:
        eventually(lambda: quick("call", "chat", "streams") == "[]\n")

    return wait


# --- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [['{"to": 2}'], ["to:=2"], ["-"]], ids=["json", "fields", "-"])
def test_replies_of_one_request_are_printed(busmicro, words):
    """The request is read as `call` reads it; each reply is a line, and nothing else is said."""
    shown = busmicro("stream", "chat", "count", *words, typed='{"to": 2}')

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == '{"n": 0}\n{"n": 1}\n'


def test_each_reply_comes_at_once_while_stdin_is_open(begin):
    """A conversation works through pipes: nothing waits in a buffer; the end of stdin ends it."""
    talk = begin("chat", "shout")

    for word in ("one", "two"):
        talk.stdin.write(f"{word}\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == f'"{word.upper()}!"\n'
    talk.stdin.close()

    assert talk.wait(10) == 0
    assert talk.stderr.read() == ""


def test_many_messages_have_one_reply(busmicro):
    """Lines of JSON are messages, empty ones are not; the last one needs no end."""
    shown = busmicro("stream", "chat", "total", typed="1\n\n2\r\n 3")

    assert (shown.returncode, shown.stdout) == (0, "6\n")


def test_no_message_at_all_is_a_stream_too(busmicro):
    """An empty stdin is the end of messages."""
    assert busmicro("stream", "chat", "total").stdout == "0\n"


def test_lines_are_texts_where_texts_are_wanted(busmicro):
    """The schema decides: what is not JSON, and what would be a number, is a text there."""
    shown = busmicro("stream", "chat", "shout", typed='it\'s\n5\n"quoted"\n\n{a}')

    assert json.loads(f"[{','.join(shown.stdout.splitlines())}]") == [
        "IT'S!",
        "5!",
        "QUOTED!",
        "!",
        "{A}!",
    ]


def test_headers_are_sent(busmicro):
    """`-H` sends a header on opening."""
    shown = busmicro("stream", "chat", "shout", "-H", "Sign: ?", typed="what\n")

    assert shown.stdout == '"WHAT?"\n'


def test_bytes_go_through_as_they_are(start, url, tmp_path):
    """`--raw` carries any file to the byte, and prints what comes without adding to it."""
    blob = bytes(range(256)) * 1000 + b"\n" + b"x" * 200_000 + b"no end"
    (tmp_path / "blob").write_bytes(blob)
    with (tmp_path / "blob").open() as file:
        process = start("stream", "chat", "echo", "--raw", stdin=file, BUSMICRO_NATS_URL=url)
        came = process.stdout.buffer.read()

    assert process.wait(10) == 0
    assert came == blob


def test_json_prints_bytes_in_base64(busmicro):
    """`--json` has a line for each reply, also where the reply is no JSON."""
    shown = busmicro("stream", "chat", "echo", "--raw", "--json", typed="a\nb\n")

    assert [json.loads(line) for line in shown.stdout.splitlines()] == [
        {"payload": "YQo="},
        {"payload": "Ygo="},
    ]


def test_raw_leaves_json_replies_as_they_came(busmicro):
    """`--raw` prints what was sent, and still a line for each."""
    assert busmicro("stream", "chat", "count", "to:=2", "--raw").stdout == '{"n":0}\n{"n":1}\n'


# --- ends ---------------------------------------------------------------------------------------


def test_failure_comes_after_what_was_good(busmicro):
    """What came before an error is printed; the error is told and numbered as that of a call."""
    shown = busmicro("stream", "chat", "count", "to:=3", "--json")

    assert shown.returncode == 69
    assert shown.stdout == '{"n": 0}\n{"n": 1}\n{"n": 2}\n'
    assert shown.stderr == "not_found: no fourth [chat]\nwhy: it was lost\n"


def test_limit_leaves_and_ends_the_handler(busmicro, nothing_goes_on):
    """`--limit` is enough: exit code 0, and the service stops what it does."""
    shown = busmicro("stream", "chat", "count", "to:=1000000000", "pause:=0.01", "--limit", "2")

    assert (shown.returncode, shown.stdout) == (0, '{"n": 0}\n{"n": 1}\n')
    nothing_goes_on()


def test_limit_does_not_ask_how_it_would_have_ended(busmicro):
    """The failure that follows the last reply wanted is nobody's concern."""
    assert busmicro("stream", "chat", "count", "to:=3", "--limit", "3").returncode == 0


def test_ctrl_c_leaves_and_ends_the_handler(begin, nothing_goes_on):
    """SIGINT is exit code 130, without a word, while stdin is open and replies come."""
    talk = begin("chat", "shout")
    talk.stdin.write("one\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == '"ONE!"\n'

    talk.send_signal(signal.SIGINT)

    assert talk.wait(10) == 130
    assert talk.stderr.read() == "\n"  # after the terminal's ^C
    nothing_goes_on()


def test_service_ends_it_while_stdin_is_open(begin):
    """When the service has had enough, nobody need press a key."""
    talk = begin("chat", "shout")
    talk.stdin.write("bye\n")
    talk.stdin.flush()

    assert talk.wait(10) == 0
    assert talk.stderr.read() == ""


def test_dead_service_is_told(start, begin, url):
    """A node that is killed ends its streams at once, as unavailable."""
    own = {"BUSMICRO_NAMESPACE": "dies"}
    node = start("run", "chat", "--no-server", BUSMICRO_NATS_URL=url, **own)
    assert "serves as node" in node.stderr.readline()
    talk = begin("chat", "shout", **own, BUSMICRO_STREAM_PING_INTERVAL="0.3")
    talk.stdin.write("one\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == '"ONE!"\n'
    node.kill()
    talk.stdin.write("two\n")
    talk.stdin.flush()

    assert talk.wait(20) == 78
    assert talk.stderr.read().startswith("unavailable: the other end ")


@pytest.mark.parametrize("option", ["--timeout", "--idle-timeout"])
def test_time_can_be_limited(busmicro, nothing_goes_on, option):
    """All of it, or the silence between messages; the text names the option."""
    shown = busmicro("stream", "chat", "count", "to:=2", "pause:=30", option, "0.3")

    assert (shown.returncode, shown.stdout) == (68, '{"n": 0}\n')
    assert f"try: {option} with more seconds" in shown.stderr
    nothing_goes_on()


# --- nothing piles up ---------------------------------------------------------------------------


def test_stdin_is_read_as_the_service_takes_it(begin):
    """A service that takes nothing leaves the rest of a huge stdin where it is."""
    line, written = "x" * 1023 + "\n", [0]
    drink = begin("chat", "sip")

    def pour() -> None:
        try:
            while True:
                written[0] += os.write(drink.stdin.fileno(), line.encode())
        except BrokenPipeError:
            return

    pouring = threading.Thread(target=pour, daemon=True)
    pouring.start()

    assert drink.wait(20) == 0
    assert drink.stdout.read() == "1023\n"
    pouring.join(10)
    assert 256 * 1024 < written[0] < 2 * 1024 * 1024


def test_reader_that_pauses_pauses_the_service(begin, quick, eventually):
    """As under `less`: unread replies hold the service back, and Ctrl-C still leaves at once."""
    before = int(quick("call", "chat", "sent"))
    talk = begin("chat", "count", "to:=1000000000")
    counts = [-1]

    def stands() -> bool:
        counts.append(int(quick("call", "chat", "sent")))
        return counts[-1] == counts[-2] > before

    eventually(stands)
    talk.send_signal(signal.SIGINT)

    assert talk.wait(10) == 130
    assert counts[-1] - before < 100_000


def test_pipe_that_closes_is_no_failure(begin, nothing_goes_on):
    """As with `| head`: who reads has enough, and so has everybody."""
    talk = begin("chat", "count", "to:=1000000000", "pause:=0.001")
    assert talk.stdout.readline() == '{"n": 0}\n'
    talk.stdout.close()

    assert talk.wait(10) == 0
    assert talk.stderr.read() == ""
    nothing_goes_on()


# --- on a terminal ------------------------------------------------------------------------------


class _Terminal:
    """`busmicro stream` with a person at both ends."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen
        self._shown = b""

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def read_until(self, text: str) -> str:
        while text.encode() not in self._shown:
            self._shown += os.read(self._screen, 4096)
        before, _, self._shown = self._shown.partition(text.encode())
        return (before + text.encode()).decode()


@pytest.fixture
def person(home, url):
    """Start `stream` on a terminal of its own."""
    started = []

    def begin(*args: str) -> _Terminal:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "busmicro", "stream", *args],
            env=_environment(home, {"BUSMICRO_NATS_URL": url}),
            cwd=home,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        started.append((process, ours))
        return _Terminal(process, ours)

    yield begin
    for process, ours in started:
        process.kill()
        process.wait()
        os.close(ours)


def test_person_types_and_ends_with_ctrl_d(person):
    """Somebody at a terminal is told the keys; Ctrl-D at the start of a line ends it well."""
    talk = person("chat", "shout")
    talk.read_until("Ctrl-D says that no more come, Ctrl-C leaves")
    talk.type("hello\n")
    talk.read_until('"HELLO!"')
    talk.type("\x04")

    assert talk.process.wait(10) == 0


def test_person_who_mistypes_tries_again(person):
    """A line that is no message is not sent, and not the end of everything."""
    talk = person("chat", "total")
    talk.read_until("Ctrl-C leaves")
    talk.type("seven\n")
    talk.read_until("not sent")
    talk.read_until("line 1 is not JSON")
    talk.type("7\n\x04")
    talk.read_until("7\r\n")

    assert talk.process.wait(10) == 0


def test_replies_are_indented_for_a_person(terminal):
    """On a terminal a reply is laid out; `--json` keeps it on its line."""
    assert '{\r\n  "n": 0\r\n}\r\n' in terminal("stream", "chat", "count", "to:=1")
    assert '{"n": 0}\r\n' in terminal("stream", "chat", "count", "to:=1", "--json")


# --- what does not do ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["call", "chat", "count", "to:=1"], 76, ["server stream", "try: busmicro stream chat co"]),
        (["call", "chat", "total", "--all"], 76, ["client stream", "try: busmicro stream chat to"]),
        (["stream", "chat", "sent"], 76, ["sent is a call", "try: busmicro call chat sent"]),
        (["stream", "chat", "cuont"], 76, ["no endpoint 'cuont'", "did you mean count?"]),
        (["stream", "chit", "count"], 78, ["no service 'chit' is up", "did you mean chat?"]),
        (["stream", "chat", "count", "to:=1", "--node", "x"], 78, ["no node 'x'", "there are"]),
        (["stream", "chat", "count", "to=x"], 67, ["to: Input should be a valid integer"]),
        (["stream", "chat", "total", "1"], 2, ["from stdin", "| busmicro stream chat total"]),
        (["stream", "chat", "total", "--limit", "0"], 2, ["--limit"]),
        (["stream", "chat", "count", "{bad"], 2, ["not JSON"]),
    ],
    ids=lambda value: "-".join(value).replace(" ", "_") if isinstance(value, list) else str(value),
)
def test_failure_is_told_and_numbered(busmicro, words, code, said):
    """The wrong verb, name, node or message: what, why, and what to try."""
    shown = busmicro(*words)

    assert (shown.returncode, shown.stdout) == (code, "")
    assert all(text in shown.stderr for text in said), shown.stderr


def test_line_that_is_no_message_ends_it(busmicro, nothing_goes_on):
    """A script is told which line was wrong, and the service does not go on with half of them."""
    shown = busmicro("stream", "chat", "total", typed="1\nnope\n3\n")

    assert (shown.returncode, shown.stdout) == (67, "")
    assert shown.stderr.startswith("invalid_argument: line 2 is not JSON\nwhy: Expecting value at")
    assert "try: busmicro describe chat" in shown.stderr
    nothing_goes_on()


def test_bytes_need_raw(busmicro):
    """Where nothing is known of the messages, lines that are no JSON name the option."""
    shown = busmicro("stream", "chat", "echo", typed="nope\n")

    assert shown.returncode == 67
    assert "--raw sends lines as they are" in shown.stderr


def test_nothing_there_is_told(busmicro, nowhere):
    """Without NATS, exit code 3 and what to start."""
    shown = busmicro("stream", "chat", "count", BUSMICRO_NATS_URL=nowhere)

    assert shown.returncode == 3
    assert "try: busmicro server" in shown.stderr


# --- shown --------------------------------------------------------------------------------------


def test_help_has_examples():
    """`--help` shows each shape on a line of its own."""
    shown = CliRunner().invoke(cli, ["stream", "--help"]).output

    assert "  busmicro stream clock tick seconds:=1 --limit 3\n" in shown
    assert "  busmicro stream shop sum < numbers.jsonl\n" in shown


def test_streams_show_as_such(busmicro):
    """Where services and endpoints are shown, so is which of them stream, and which way."""
    listed, shown = busmicro("services").stdout, busmicro("describe", "chat").stdout
    described = json.loads(busmicro("describe", "chat", "--json").stdout)
    kinds = {endpoint["name"]: endpoint["kind"] for endpoint in described["endpoints"]}

    assert "count (stream)" in listed
    assert "sent (stream)" not in listed
    assert "  request  to: integer\n" in shown
    assert "  replies  n: integer\n  server stream, not idempotent\n" in shown
    assert "  requests integer\n  reply    integer\n  client stream" in shown
    assert "  requests string\n  replies  string\n  stream both ways" in shown
    assert (kinds["count"], kinds["total"]) == ("server_stream", "client_stream")
    assert (kinds["shout"], kinds["sent"]) == ("both", "unary")


def test_template_of_a_message_is_taken(busmicro):
    """What `describe --template` prints is a line for an endpoint that takes many."""
    template = busmicro("describe", "chat", "total", "--template").stdout

    assert busmicro("stream", "chat", "total", typed=template * 2).stdout == "2\n"


def test_completion_offers_what_fits_the_verb(monkeypatch, eventually, url):
    """`stream` completes endpoints that stream, `call` the others."""
    monkeypatch.setenv("BUSMICRO_NATS_URL", url)
    shell = ShellComplete(cli, {}, "busmicro", "_BUSMICRO_COMPLETE")

    def complete(verb: str) -> list[str]:
        found = [item.value for item in shell.get_completions([verb, "chat"], "s")]
        logging.disable(logging.NOTSET)  # a shell's helper is silent; this process lives on
        return found

    eventually(lambda: complete("stream") == ["shout", "sip"])
    eventually(lambda: complete("call") == ["streams", "sent"])
