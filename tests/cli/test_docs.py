"""`busmicro docs`."""

from __future__ import annotations

import json

import pytest

_EVENTS = '''
from pydantic import BaseModel
from busmicro import Service, Stream, Topic

class OrderPaid(BaseModel):
    order: str

paid = Topic("orders.paid", OrderPaid, stream=Stream("ORDERS"))
billing = Service("billing", version="1.2.0")
billing.publishes(paid)

@billing.rpc
async def total() -> float:
    """Add it up."""
    return 0.0

@billing.subscribe(paid, group="books")
async def on_paid(event: OrderPaid) -> None:
    """Zähle es."""
'''


@pytest.fixture
def billing(home):
    """Make a file with a service of calls and events."""
    (home / "billing.py").write_text(_EVENTS, encoding="utf-8")


@pytest.mark.usefixtures("billing")
def test_document_is_json_for_people_and_programs(busmicro):
    """It is indented wherever it goes, in the words of the code, and needs no NATS."""
    shown = busmicro("docs", "asyncapi", "billing:billing", BUSMICRO_NATS_URL="")

    document = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert not shown.stderr
    assert shown.stdout.startswith('{\n  "asyncapi": "3.0.0",\n')
    assert "Zähle es." in shown.stdout
    assert document["info"]["title"] == "billing"
    assert document["servers"]["nats"]["host"] == "127.0.0.1:4222"
    assert set(document["operations"]) == {
        "receive-rpc.billing.total",
        "receive-orders.paid-books",
        "send-orders.paid",
    }


@pytest.mark.usefixtures("billing")
def test_document_takes_server_and_namespace_from_the_command_line(busmicro):
    """`--server` and `--namespace` win, as they do for `run`; a password is left out."""
    options = ("--server", "nats://bob:secret@bus.example", "-n", "prod")
    shown = busmicro("docs", "asyncapi", "billing.py:billing", *options)

    document = json.loads(shown.stdout)
    assert document["servers"]["nats"]["host"] == "bus.example:4222"
    assert document["channels"]["orders.paid"]["address"] == "prod.orders.paid"
    assert "secret" not in shown.stdout


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("bilingo:billing", ["there is no module 'bilingo'", "neither installed nor"]),
        ("billing", ["billing has no 'service'", "its services: billing"]),
        ("billing:OrderPaid", ["is a ModelMetaclass, not a Service"]),
        ("other.py:billing", ["there is no file other.py"]),
    ],
)
@pytest.mark.usefixtures("billing")
def test_target_that_is_wrong_is_told_as_run_tells_it(busmicro, target, said):
    """A module or name that does not do is exit code 2 and the same words."""
    shown = busmicro("docs", "asyncapi", target)

    assert shown.returncode == 2
    assert not shown.stdout
    assert all(text in shown.stderr for text in said), shown.stderr
    assert shown.stderr == busmicro("run", target).stderr


@pytest.mark.usefixtures("billing")
def test_unknown_kind_of_document_is_wrong_usage(busmicro):
    """What kinds there are is told."""
    shown = busmicro("docs", "openapi", "billing:billing")

    assert shown.returncode == 2
    assert "asyncapi" in shown.stderr
