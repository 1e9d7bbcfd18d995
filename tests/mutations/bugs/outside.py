"""Bugs in what stands at the edge: settings, types, the command, the document of a service."""

from __future__ import annotations

from tests.mutations.bug import Bug

BUGS = (
    Bug(
        "shows a password in the message about a wrong setting",
        "settings.py",
        "hide_input_in_errors=True,",
        "hide_input_in_errors=False,",
        ("unit/test_command_ends.py",),
    ),
    Bug(
        "takes a setting of 0 for none",
        "settings.py",
        "return cls(**{name: value for name, value in given.items() if value is not None})"
        "  # type: ignore[arg-type]",
        "return cls(**{name: value for name, value in given.items() if value})",
        ("unit/test_settings.py",),
    ),
    Bug(
        "takes several servers for one",
        "settings.py",
        'return [url.strip() for url in self.nats_url.split(",") if url.strip()]',
        "return [self.nats_url]",
        ("unit/test_settings.py",),
    ),
    Bug(
        "connects to any scheme",
        "settings.py",
        'if "://" in url and not url.strip().startswith(URL_SCHEMES):',
        "if False:",
        ("unit/test_settings.py",),
    ),
    Bug(
        "sends a message of another class",
        "codecs/json.py",
        "if not isinstance(message, required):",
        "if False:",
        ("unit/codecs",),
    ),
    Bug(
        "keeps every spelling of a content type",
        "codecs/__init__.py",
        "if coder is not None and len(self._built) < _MOST_SPELLINGS:",
        "if coder is not None:",
        ("unit/codecs",),
    ),
    Bug(
        "takes a content type with a parameter for another",
        "codecs/__init__.py",
        'plain = content_type.partition(";")[0].strip().lower() or JSON',
        "plain = content_type or JSON",
        ("unit/codecs",),
    ),
    Bug(
        "leaves a failed task unheard of",
        "tasks.py",
        "if not task.cancelled() and (failure := task.exception()) is not None:",
        "if (failure := None) is not None:",
        ("unit/test_tasks.py",),
    ),
    Bug(
        "waits for the very task that cancels",
        "tasks.py",
        "while doomed := [task for task in self._tasks if task is not mine]:",
        "while doomed := list(self._tasks):",
        ("unit/test_tasks.py",),
    ),
    Bug(
        "sends a number as text",
        "cli/body.py",
        '_put(found, name.split("."), _json(text, name) if sign == ":=" else text)',
        '_put(found, name.split("."), text)',
        ("cli/test_parts.py",),
    ),
    Bug(
        "takes a time of this machine for UTC",
        "cli/moments.py",
        "return datetime.fromisoformat(text).astimezone(UTC)",
        "return datetime.fromisoformat(text).replace(tzinfo=UTC)",
        ("unit/test_command_moments.py",),
    ),
    Bug(
        "takes an hour for a minute",
        "cli/moments.py",
        '_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}',
        '_SECONDS = {"s": 1, "m": 60, "h": 60, "d": 86_400}',
        ("unit/test_command_moments.py",),
    ),
    Bug(
        "ends well although calls have failed",
        "cli/load.py",
        "return exit_code(result.failures[0]) if result.failures else 0",
        "return 0",
        ("unit/test_command_ends.py",),
    ),
    Bug(
        "gives the worst of many calls as their median",
        "cli/load.py",
        "ordered = sorted(self.latencies)",
        "ordered = sorted(self.latencies, reverse=True)",
        ("unit/test_command_ends.py",),
    ),
    Bug(
        "hides a fault of its own behind an exit code",
        "cli/failures.py",
        "raise failure",
        "return 1",
        ("unit/test_command_ends.py",),
    ),
    Bug(
        "sends control characters to the terminal",
        "cli/words.py",
        'return "".join(c if c.isprintable() or c == "\\n" '
        'else "\\N{REPLACEMENT CHARACTER}" for c in text)',
        "return text",
        ("unit/test_command_ends.py",),
    ),
    Bug(
        "writes the password of a server into the document",
        "asyncapi.py",
        'host = parts.netloc.rpartition("@")[2]',
        "host = parts.netloc",
        ("unit/test_asyncapi.py",),
    ),
    Bug(
        "writes what no reader of draft 07 sees beside a reference",
        "asyncapi.py",
        'if "$ref" in new and len(new) > 1:  # draft 07 sees nothing beside a `$ref`',
        "if False:",
        ("unit/test_asyncapi.py",),
    ),
    Bug(
        "gives two channels one name",
        "asyncapi.py",
        "while key in taken:",
        "while False:",
        ("unit/test_asyncapi.py",),
    ),
    Bug(
        "calls a durable group a queue",
        "asyncapi.py",
        "if topic.stream is None:  # a durable group is a consumer of the stream, not a queue",
        "if True:",
        ("unit/test_asyncapi.py",),
    ),
    Bug(
        "leaves the namespace out of the subjects of a stream",
        "asyncapi.py",
        'described["subjects"] = [subjects.prefix + subject for subject in stream.subjects]',
        'described["subjects"] = list(stream.subjects)',
        ("unit/test_asyncapi.py",),
    ),
)
