"""AsyncAPI: one document of what a service answers, publishes and listens to.

It is made from the `Service` object alone: nothing runs and nobody is asked.  What AsyncAPI has no
word for stands in `x-` fields: the streams that keep events at channels, groups and attempts at
operations, and at endpoints with streams of messages which way they go.

Source: AsyncAPI 3.0.0; AsyncAPI NATS bindings 0.1.0; CloudEvents 1.0.3, NATS protocol binding
(the draft that has binary mode).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import fields
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import JsonValue, TypeAdapter

from busmicro.codecs import Coder, is_protobuf, json_schema
from busmicro.headers import CE_ID, CE_SOURCE, CE_TIME, CE_TYPE, ERROR, ERROR_CODE, MSG_ID, STATUS
from busmicro.pubsub import Stream, Subscriber, Topic
from busmicro.rpc.handlers import Endpoint
from busmicro.service import Service
from busmicro.settings import DEFAULT_URL
from busmicro.transport import QUEUE_GROUP, Subjects

Json: TypeAlias = dict[str, JsonValue]

_SCHEMAS: Final = "#/components/schemas/"
_DEFAULT_PORTS: Final = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}
_TEXT: Final[Json] = {"type": "string"}


def asyncapi(service: Service) -> Json:
    """Describe a service as an AsyncAPI 3.0.0 document; the same service gives the same document.

    Args:
        service: It need not run. Servers and namespace are those that its code chose, or that it
            was configured with, else the defaults of `Settings`.

    Returns:
        The document, ready for `json.dumps`: one channel for each subject, one operation for each
        endpoint, handler of events and published topic.
    """
    return _Document(service).build()


class _Document:
    """A document in the making."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._subjects = Subjects(str(service.said.get("namespace") or ""))
        self._schemas = _Schemas(_types(service))
        self._channels: dict[str, _Channel] = {}
        self._messages: Json = {}
        self._operations: Json = {}

    def build(self) -> Json:
        for endpoint in self._service.endpoints:
            self._add_endpoint(endpoint)
        for subscriber in self._service.subscribers:
            self._add_subscriber(subscriber)
        for topic in dict.fromkeys(self._service.published):  # schedules name theirs again
            self._add_published(topic)
        channels: Json = {channel.id: channel.entry for channel in self._channels.values()}
        return {
            "asyncapi": "3.0.0",
            "info": _info(self._service),
            "servers": _servers(str(self._service.said.get("nats_url") or DEFAULT_URL)),
            "defaultContentType": "application/json",
            "channels": channels,
            "operations": self._operations,
            "components": {"messages": self._messages, "schemas": self._schemas.named},
        }

    # --- operations -----------------------------------------------------------------------------

    def _add_endpoint(self, endpoint: Endpoint) -> None:
        signature, options = endpoint.signature, endpoint.options
        channel = self._channel(self._subjects.rpc(self._service.name, endpoint.name))
        replies = self._channel(None)
        request = self._message(
            signature.request_type, endpoint.requests.default, f"{endpoint.name}.request"
        )
        reply = self._message(
            signature.reply_type, endpoint.replies.default, f"{endpoint.name}.reply"
        )
        error = self._keep("error", _error())
        operation = _operation("receive", channel, request, endpoint.name, signature.doc)
        operation["bindings"] = _queue(QUEUE_GROUP)
        operation["reply"] = {
            "channel": replies.ref,
            "messages": [replies.carry(reply), replies.carry(error)],
        }
        if endpoint.streams:  # it lasts as long as it likes, unless its author says
            operation["x-kind"] = signature.shape.value
        if timeout := options.timeout if endpoint.streams else endpoint.timeout:
            operation["x-timeout"] = timeout
        operation["x-idempotent"] = options.idempotent
        if options.metadata:
            operation["x-metadata"] = {**options.metadata}
        self._add_operation(f"receive-{channel.id}", operation)

    def _add_subscriber(self, subscriber: Subscriber) -> None:
        topic, options = subscriber.topic, subscriber.options
        channel = self._topic_channel(topic)
        operation = _operation(
            "receive",
            channel,
            self._event(topic, channel),
            str(getattr(subscriber.function, "__name__", "")),
            subscriber.doc,
        )
        if options.group:
            operation["x-group"] = options.group
            if topic.stream is None:  # a durable group is a consumer of the stream, not a queue
                operation["bindings"] = _queue(options.group)
        if topic.stream is not None:
            operation["x-max-deliver"] = options.max_deliver
            operation["x-ack-wait"] = options.ack_wait
            operation["x-backoff"] = list(options.backoff)
        if subscriber.takes_list:
            operation["x-batch"] = options.batch
        ending = f"-{options.group}" if options.group else ""
        self._add_operation(f"receive-{channel.id}{ending}", operation)

    def _add_published(self, topic: Topic[object]) -> None:
        channel = self._topic_channel(topic)
        operation = _operation("send", channel, self._event(topic, channel), "", "")
        self._add_operation(f"send-{channel.id}", operation)

    def _add_operation(self, name: str, operation: Json) -> None:
        self._operations[_free(name, self._operations)] = operation

    # --- channels -------------------------------------------------------------------------------

    def _topic_channel(self, topic: Topic[object]) -> _Channel:
        channel = self._channel(self._subjects.prefix + topic.subject)
        if topic.names:
            channel.entry["parameters"] = {
                name: {"description": "One word of the subject."} for name in topic.names
            }
        if topic.stream is not None:
            channel.entry["x-stream"] = _stream(topic.stream, self._subjects)
        return channel

    def _channel(self, address: str | None) -> _Channel:
        """Return the channel of a subject; of `None`, the one that all replies share."""
        key = address or ""
        if key not in self._channels:
            taken = {channel.id for channel in self._channels.values()}
            name = _id_of(key.removeprefix(self._subjects.prefix))
            self._channels[key] = _Channel(_free(name, taken), address)
        return self._channels[key]

    # --- messages -------------------------------------------------------------------------------

    def _event(self, topic: Topic[object], channel: _Channel) -> str:
        headers = None if topic.stream is None else _cloud_event(topic)
        return self._message(topic.type, topic.coder, channel.id, headers)

    def _message(
        self, kind: object, coder: Coder, otherwise: str, headers: Json | None = None
    ) -> str:
        """Keep a message of a type; `otherwise` names one whose type is not the user's own."""
        entry: Json = {"name": _name_of(kind, otherwise)}
        if kind is not None:
            entry["contentType"] = coder.content_type
        if headers is not None:
            entry["headers"] = headers
        payload = self._schemas.of(kind)
        if payload is not None:
            entry["payload"] = payload
        if is_protobuf(kind):
            entry["x-protobuf-type"] = _protobuf_name(kind)
        return self._keep(str(entry["name"]), entry)

    def _keep(self, name: str, entry: Json) -> str:
        """Keep a message under a name of its own; equal ones share it."""
        same = [key for key, known in self._messages.items() if known == entry]
        key = same[0] if same else _free(name, self._messages)
        self._messages[key] = entry
        return key


class _Channel:
    """A channel, and the messages seen on it so far."""

    def __init__(self, name: str, address: str | None) -> None:
        self.id = name
        self.ref: Json = {"$ref": f"#/channels/{name}"}
        self._messages: Json = {}
        self.entry: Json = {"address": address, "messages": self._messages}
        if address is None:
            self.entry["summary"] = "The reply subject of each request."

    def carry(self, message: str) -> Json:
        """Add a message; return how operations refer to it."""
        self._messages[message] = {"$ref": f"#/components/messages/{message}"}
        return {"$ref": f"#/channels/{self.id}/messages/{message}"}


def _operation(action: str, channel: _Channel, message: str, title: str, doc: str) -> Json:
    operation: Json = {"action": action, "channel": channel.ref}
    if title:
        operation["title"] = title
    if doc:
        operation["summary"] = doc
    operation["messages"] = [channel.carry(message)]
    return operation


# --- names --------------------------------------------------------------------------------------


def _id_of(subject: str) -> str:
    """Make a channel's id of its subject: the same in every namespace, and fit for a `$ref`."""
    words = {"*": "any", ">": "all"}
    return ".".join(words.get(word, word.strip("{}")) for word in subject.split(".")) or "replies"


def _name_of(kind: object, otherwise: str) -> str:
    """Return the name of a class that a user wrote; a builtin's would tell nothing."""
    own = isinstance(kind, type) and kind.__module__ != "builtins"
    return str(getattr(kind, "__name__", otherwise)) if own else otherwise


def _protobuf_name(kind: object) -> str:
    return str(getattr(getattr(kind, "DESCRIPTOR", None), "full_name", ""))


def _free(name: str, taken: Container[str]) -> str:
    """Return the name as a component may have it, with a number if it is taken."""
    wanted = key = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    number = 1
    while key in taken:
        number += 1
        key = f"{wanted}-{number}"
    return key


# --- what stands in the document ----------------------------------------------------------------


def _info(service: Service) -> Json:
    what = f"What {service.name} answers, publishes and listens to."
    described = service.metadata.get("description", what)
    info: Json = {"title": service.name, "version": service.version, "description": described}
    if service.metadata:
        info["x-metadata"] = {**service.metadata}
    return info


def _servers(urls: str) -> Json:
    """Describe the servers, without the passwords that URLs may have."""
    servers: Json = {}
    for url in filter(None, map(str.strip, urls.split(","))):
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        if parts.scheme == "memory":
            continue  # nobody outside can connect to it
        host = parts.netloc.rpartition("@")[2]
        if not re.search(r":\d+$", host):
            host = f"{host}:{_DEFAULT_PORTS[parts.scheme]}"
        server: Json = {"host": host, "protocol": parts.scheme}
        if parts.path.strip("/"):
            server["pathname"] = parts.path
        servers[_free("nats", servers)] = server
    return servers


def _queue(group: str) -> Json:
    return {"nats": {"queue": group, "bindingVersion": "0.1.0"}}


def _stream(stream: Stream, subjects: Subjects) -> Json:
    name = subjects.stream(stream.name)
    if not stream.managed:  # what holds for it is decided elsewhere
        return {"name": name, "managed": False}
    described: Json = {field.name: getattr(stream, field.name) for field in fields(stream)}
    described["name"] = name
    described["subjects"] = [subjects.prefix + subject for subject in stream.subjects]
    return described


def _cloud_event(topic: Topic[object]) -> Json:
    """Describe the headers of an event that is kept; one of a schedule has but a content type."""
    content: Json = {"type": "string", "examples": [topic.coder.content_type]}
    return {
        "type": "object",
        "description": "CloudEvents 1.0, binary mode.",
        "properties": {
            "ce-specversion": {"type": "string", "const": "1.0"},
            CE_ID: _TEXT,
            CE_SOURCE: {"type": "string", "format": "uri-reference"},
            CE_TYPE: {"type": "string", "examples": [topic.event_type]},
            CE_TIME: {"type": "string", "format": "date-time"},
            "ce-datacontenttype": content,
            "Content-Type": content,
            MSG_ID: {"type": "string", "description": "A second one in a while is not stored."},
        },
    }


def _error() -> Json:
    """Describe what a failed call is answered with."""
    headers: Json = {
        ERROR_CODE: {"type": "string", "description": "An HTTP status."},
        ERROR: {"type": "string", "description": "The message, percent-encoded."},
        STATUS: {"type": "string", "description": "The name of the code."},
    }
    payload: Json = {
        "code": _TEXT,
        "message": _TEXT,
        "details": {"type": "array", "items": True},
        "origin": {"type": "string", "description": "The service that it comes from."},
    }
    return {
        "name": "error",
        "summary": "The call failed.",
        "contentType": "application/json",
        "headers": {"type": "object", "properties": headers, "required": list(headers)},
        "payload": {"type": "object", "properties": payload, "required": list(payload)},
    }


# --- schemas ------------------------------------------------------------------------------------


def _types(service: Service) -> Iterator[object]:
    for endpoint in service.endpoints:
        yield endpoint.signature.request_type
        yield endpoint.signature.reply_type
    for subscriber in service.subscribers:
        yield subscriber.topic.type
    for topic in service.published:
        yield topic.type


class _Schemas:
    """The JSON Schemas of all types at once, so that pydantic keeps equal names apart."""

    def __init__(self, types: Iterable[object]) -> None:
        known = {id(kind): kind for kind in types if json_schema(kind) is not None}
        found, whole = TypeAdapter.json_schemas(
            [(key, "validation", TypeAdapter(kind)) for key, kind in known.items()],  # type: ignore[arg-type]
            ref_template=_SCHEMAS + "{model}",
        )
        self._payloads = {key: _as_draft_07(schema) for (key, _), schema in found.items()}
        defined = sorted(whole.get("$defs", {}).items())
        self.named: Json = {name: _as_draft_07(schema) for name, schema in defined}

    def of(self, kind: object) -> JsonValue:
        """Return the schema of a type; None if it has none, such as bytes or protobuf."""
        return self._payloads.get(id(kind))


_IN_A_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
_BY_NAME = ("properties", "patternProperties")
_ALONE = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")


def _as_draft_07(schema: JsonValue) -> JsonValue:
    """Rewrite what pydantic says in the words of JSON Schema 2020-12 for AsyncAPI's, draft 07."""
    if not isinstance(schema, dict):
        return schema
    new = {key: _inside(key, value) for key, value in schema.items()}
    if "prefixItems" in new:
        if "items" in new:
            new["additionalItems"] = new["items"]
        new["items"] = new.pop("prefixItems")
    if isinstance(discriminator := new.get("discriminator"), dict):
        new["discriminator"] = discriminator["propertyName"]
    if "$ref" in new and len(new) > 1:  # draft 07 sees nothing beside a `$ref`
        new["allOf"] = [{"$ref": new.pop("$ref")}]
    return new


def _inside(key: str, value: JsonValue) -> JsonValue:
    if key in _IN_A_LIST and isinstance(value, list):
        return [_as_draft_07(schema) for schema in value]
    if key in _BY_NAME and isinstance(value, dict):
        return {name: _as_draft_07(schema) for name, schema in value.items()}
    return _as_draft_07(value) if key in _ALONE else value
