"""The names under which telemetry shows exchanges: OpenTelemetry's, and a few of our own.

Every name that leaves this process by way of telemetry stands here and nowhere else, so that a
new version of the conventions is one change to one file.

Source: OpenTelemetry semantic conventions 1.44.0, docs/rpc (release candidate) and docs/messaging
(in development).  Newer ones will call `rpc.response.status_code` `rpc.status_code`.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

from busmicro.call import Call, Kind, Side, Spec
from busmicro.clock import SYSTEM_CLOCK
from busmicro.errors import CallError, Code
from busmicro.headers import MSG_ID

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
SCOPE: Final = "busmicro"

Value: TypeAlias = str | int | float | bool
Attributes: TypeAlias = dict[str, Value]

# --- attributes ---------------------------------------------------------------------------------

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS_CODE: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"

MESSAGING_SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
DESTINATION_TEMPLATE: Final = "messaging.destination.template"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"
MESSAGE_ID: Final = "messaging.message.id"
BODY_SIZE: Final = "messaging.message.body.size"
BATCH_COUNT: Final = "messaging.batch.message_count"
DELIVERY_ATTEMPT: Final = "messaging.nats.delivery_attempt"

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_INSTANCE: Final = "service.instance.id"
SERVICE: Final = "busmicro.service"
NODE: Final = "busmicro.node"
ENDPOINT: Final = "busmicro.endpoint"
SIDE: Final = "busmicro.side"
WRAPPER: Final = "busmicro.wrapper"
GROUP: Final = "busmicro.group"
CHECK: Final = "busmicro.check"
DIRECTION: Final = "network.io.direction"

# --- metrics ------------------------------------------------------------------------------------

SECONDS: Final = "s"
RPC_CLIENT_DURATION: Final = "rpc.client.call.duration"
RPC_SERVER_DURATION: Final = "rpc.server.call.duration"
PUBLISH_DURATION: Final = "messaging.client.operation.duration"
PROCESS_DURATION: Final = "messaging.process.duration"
SENT_MESSAGES: Final = "messaging.client.sent.messages"
CONSUMED_MESSAGES: Final = "messaging.client.consumed.messages"

IN_FLIGHT: Final = "busmicro.in_flight"
STREAM_MESSAGES: Final = "busmicro.stream.messages"
RUNNING: Final = "busmicro.running"
WAITING: Final = "busmicro.waiting"
REQUESTS: Final = "busmicro.requests"
REQUEST_ERRORS: Final = "busmicro.request.errors"
RETRIES: Final = "busmicro.retries"
BREAKER_STATE: Final = "busmicro.breaker.state"
REJECTIONS: Final = "busmicro.limiter.rejections"
CONSUMER_LAG: Final = "busmicro.consumer.lag"
EVENTS_HANDLED: Final = "busmicro.events.handled"
EVENTS_FAILED: Final = "busmicro.events.failed"
EVENTS_DROPPED: Final = "busmicro.events.dropped"
DEAD_LETTERS: Final = "busmicro.dlq.messages"
RECONNECTS: Final = "busmicro.nats.reconnects"
CONNECTED: Final = "busmicro.nats.connected"
LOOP_LAG: Final = "busmicro.loop.lag"
HEALTHY: Final = "busmicro.health"

DURATIONS: Final = {
    RPC_CLIENT_DURATION: "Duration of outbound calls, all attempts together.",
    RPC_SERVER_DURATION: "Duration of inbound calls.",
    PUBLISH_DURATION: "Duration of publishing an event.",
    PROCESS_DURATION: "Duration of handling an event.",
}
"""The histograms, and what they say."""
DURATION_BOUNDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Upper bounds of a duration's buckets, in seconds, as the conventions have them."""


COUNTED: Final = {
    SENT_MESSAGES: ("{message}", "Events published."),
    CONSUMED_MESSAGES: ("{message}", "Events delivered to handlers."),
    RETRIES: ("{attempt}", "Requests that came because an earlier attempt had failed."),
}
"""What `Metrics` counts: unit and description."""
COUNTERS: Final = {
    REQUESTS: ("{request}", "Requests answered or given up, good or bad."),
    REQUEST_ERRORS: ("{request}", "Of these, how many did not succeed."),
    REJECTIONS: ("{exchange}", "Exchanges that a limit or a breaker refused."),
    EVENTS_HANDLED: ("{message}", "Events that went well."),
    EVENTS_FAILED: ("{message}", "Attempts to handle an event that failed."),
    EVENTS_DROPPED: ("{message}", "Events without a stream that came while too many waited."),
    DEAD_LETTERS: ("{message}", "Events that went to the dead letters."),
    RECONNECTS: ("{connection}", "How often the connection to NATS was made again."),
}
"""What only grows: unit and description of each figure of our own."""
GAUGES: Final = {
    RUNNING: ("{exchange}", "Requests and events that are being handled."),
    WAITING: ("{event}", "Events that are here and not begun with."),
    BREAKER_STATE: ("1", "0 closed or disabled, 1 half open, 2 open."),
    CONNECTED: ("1", "1 while the connection to NATS is up."),
    LOOP_LAG: ("s", "The longest that the event loop was late in the last ten seconds."),
    HEALTHY: ("1", "1 while a check passes, or while the node takes requests."),
}
"""What goes up and down."""


# --- an exchange in these words -----------------------------------------------------------------

_SERVERS_FAULT: Final = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)
"""What is an error of the service, and not only of whoever called it; as gRPC has it."""


def method(spec: Spec) -> str:
    """Return the fully qualified name of an endpoint: `orders/get`, `orders.Orders/get`."""
    first, dot, last = spec.endpoint.rpartition(".")
    return f"{spec.service}.{first}/{last}" if dot else f"{spec.service}/{last}"


def operation(spec: Spec) -> str:
    """Return what is done with an event at this side."""
    return "publish" if spec.side is Side.CLIENT else "process"


def span_name(spec: Spec) -> str:
    """Return the name of an exchange's span: few in number, whatever is exchanged."""
    return f"{operation(spec)} {spec.endpoint}" if spec.kind is Kind.EVENT else method(spec)


def duration(spec: Spec) -> str:
    """Return the name of the histogram that an exchange belongs in."""
    if spec.kind is Kind.EVENT:
        return PUBLISH_DURATION if spec.side is Side.CLIENT else PROCESS_DURATION
    return RPC_CLIENT_DURATION if spec.side is Side.CLIENT else RPC_SERVER_DURATION


def fixed_attributes(spec: Spec) -> Attributes:
    """Return what is true of every exchange of an endpoint; few values, so metrics may have it."""
    if spec.kind is not Kind.EVENT:
        found: Attributes = {RPC_SYSTEM: "busmicro", RPC_METHOD: method(spec)}
        if spec.side is Side.CLIENT:
            found[SERVER_ADDRESS] = spec.service
        return found
    said = operation(spec)
    found = {
        MESSAGING_SYSTEM: "nats",
        OPERATION_NAME: said,
        OPERATION_TYPE: "send" if said == "publish" else said,
    }
    # a family of topics may have a million subjects, but it has one template
    found[DESTINATION_TEMPLATE if "{" in spec.endpoint else DESTINATION] = spec.endpoint
    return found


def event_attributes(call: Call) -> Attributes:
    """Return what is true of this one event; only spans may have it."""
    found: Attributes = {}
    if "{" in call.spec.endpoint and call.subject_bytes:
        found[DESTINATION] = call.subject
    if call.spec.side is Side.CLIENT:
        return found
    if call.payload:
        found[BODY_SIZE] = len(call.payload)
    elif isinstance(call.message, list):
        found[BATCH_COUNT] = len(call.message)
    delivery = call.delivery
    if delivery is not None:
        found[CONSUMER_GROUP] = delivery.consumer
        found[DELIVERY_ATTEMPT] = delivery.attempt
        found[MESSAGE_ID] = call.headers.get(MSG_ID) or delivery.id
    return found


def code_of(call: Call, failure: BaseException) -> Code | None:
    """Return the code with which an exchange ended; None for a fault that has no code."""
    if isinstance(failure, CallError):
        return failure.code
    if isinstance(failure, asyncio.CancelledError | GeneratorExit):
        ended = getattr(call.stream, "outcome", None)
        if isinstance(ended, CallError):  # why the handler of a stream was cancelled
            return ended.code
        late = call.deadline is not None and SYSTEM_CLOCK.now() >= call.deadline
        return Code.DEADLINE_EXCEEDED if late else Code.CANCELLED
    return Code.DEADLINE_EXCEEDED if isinstance(failure, TimeoutError) else None


def error_type(call: Call, failure: BaseException) -> str:
    """Return what telemetry calls a failure: its code, else the name of its class."""
    code = code_of(call, failure)
    return type(failure).__qualname__ if code is None else code.value


def is_error(spec: Spec, code: Code | None) -> bool:
    """Tell whether a code is an error at this side: at the caller all but `ok` are."""
    if spec.side is Side.CLIENT or spec.kind is Kind.EVENT or code is None:
        return code is not Code.OK
    return code in _SERVERS_FAULT
