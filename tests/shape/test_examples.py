"""Every example runs, and prints what it promises; the README's code is code that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from busmicro import Client
from tests.environment import PYTHONPATH, ROOT

EXAMPLES = ROOT / "examples"

PRINTS = {
    "03_class_and_stub.py": "42\n4.0\n",
    "04_errors.py": "no user bob [{'searched': 'users'}] from users\nnot a str: ",
    "05_deadlines.py": "0.5 s left for the roast\n",
    "06_wrappers.py": "clock.wait took 10",
    "07_everyone.py": "['attic', 'cellar', 'kitchen']\n",
    "08_events.py": (
        "['attic: order 17 is there', 'cellar: order 17 is there']\n"
        "1 in ORDERS, there already: False\n"
        "1 in ORDERS, there already: True\n"
        "order 17 is paid\n"
        "0 more\n"
    ),
    "09_dead_letters.py": (
        "orders.paid by books-orders-paid: nobody called bob, b'\"bob\"'\n"
        "booked for bob\n"
        "dead letters left: 0\n"
    ),
    "10_later.py": "['bed', 'tea', 'tick']\ntook more than a second: True\n",
    "11_iterate.py": (
        "readings.attic: 14.5\nreadings.cellar: 11.0\nreadings.kitchen: 21.0\ncoldest: 11.0\n"
    ),
    "12_rate_limit.py": (
        "3 calls of two clients were answered in 2.5 s, at 1/s\n"
        "the rest was told when to come: True\n"
        "Snow? Perhaps.\n"
    ),
    "13_breaker.py": (
        "open after 5 slow calls\n"
        "100 refused, the service was still asked 5 times\n"
        "5 bolts, closed\n"
    ),
    "14_balance.py": (
        "1000 calls, each answered once, by ['attic', 'cellar']\n"
        "no node has more than two thirds: True\n"
        "cellar greets the last guest\n"
    ),
    "15_trace.py": (
        "tea is booked\n"
        "shop/buy (client) is a child of nobody\n"
        "shop/buy (server) is a child of shop/buy (client)\n"
        "bank/pay (client) is a child of shop/buy (server)\n"
        "bank/pay (server) is a child of bank/pay (client)\n"
        "publish orders.paid (producer) is a child of bank/pay (server)\n"
        "process orders.paid (consumer) is a child of publish orders.paid (producer)\n"
    ),
    "16_streams.py": (
        "no more on the way to 3\n"
        "[1, 2, 3]\n"
        "no more on the way to 4\n"
        "30\n"
        "no more on the way to 1000000000\n"
    ),
    "17_chat.py": (
        "Hello Ada, what may it be? Today: turnip soup.\n"
        "One ale, at once.\n"
        "One soup, at once.\n"
        "['Farewell Ada!']\n"
        "Ada has paid\n"
        "Hello stranger, what may it be?\n"
        "stranger has run away\n"
    ),
    "18_upload.py": (
        "10c56888e37e23e98ff229ae5a6f2ece15bf6e5d36aba00da863b578745cd0c9\n25600000\n"
    ),
}
NEED_A_SERVER = {"01_greeter.py", "02_client.py"}


def run(*args: object, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, args)],
        env={**os.environ, **env, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_tested_and_short():
    """An example is one idea in at most forty lines of code, and some test runs it."""
    names = {path.name for path in EXAMPLES.glob("*.py")}

    assert names == set(PRINTS) | NEED_A_SERVER
    for name in names:
        lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
        assert len([line for line in lines if line.strip()]) <= 40, name


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example_prints_what_it_promises(name: str):
    """Each example runs by itself and ends by itself."""
    out = run(EXAMPLES / name)
    assert out.startswith(PRINTS[name])
    if name == "05_deadlines.py":
        assert "stopped cooking the roast" in out
        assert "gave up: deadline_exceeded" in out


async def test_greeter_and_client_work_together(busmicro_server, start_program):
    """The first example serves, and the second one calls it."""
    greeter = start_program(str(EXAMPLES / "01_greeter.py"), url=busmicro_server.url)
    async with Client(busmicro_server.url, wait_for_ready=True) as client:
        await client.call("greeter", "hello", {"name": "x"}, timeout=10.0)

    assert run(EXAMPLES / "02_client.py", BUSMICRO_NATS_URL=busmicro_server.url) == "Hello John\n"
    greeter.send_signal(signal.SIGTERM)
    assert greeter.wait(10) == 0


async def test_readme_runs_to_the_letter(busmicro_server, start_program, tmp_path):
    """The README's service and client, copied into an empty folder, do what it says."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "greeter.py").write_text(blocks[0], encoding="utf-8")
    (tmp_path / "client.py").write_text(blocks[1], encoding="utf-8")
    start_program(str(tmp_path / "greeter.py"), url=busmicro_server.url)
    async with Client(busmicro_server.url, wait_for_ready=True) as client:
        await client.call("greeter", "hello", {"name": "x"}, timeout=10.0)
    url = {"BUSMICRO_NATS_URL": busmicro_server.url}

    assert run(tmp_path / "client.py", **url) == "Hello John\n"
    command = re.search(r"busmicro call greeter hello '(.*)'", readme)
    assert command
    out = run("-m", "busmicro", "call", "greeter", "hello", command[1], **url)
    assert json.loads(out) == {"greeting": "Hello John"}
