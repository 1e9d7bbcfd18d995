"""The shape of the project: what the documents say of it is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import busmicro

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "busmicro"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 560
MAX_BODY = 40

CONTRACT = """
Aborted AdaptiveLimit AlreadyExists Answers BusmicroError Cache Call CallError CallStream Cancelled
CircuitBreaker CircuitOpen Client Code CodecError ConcurrencyLimit DataLoss DeadLetter
DeadLetters Deadline DeadlineExceeded Delivery Disconnected Events FailedPrecondition Fault
Handler Headers Hedge Internal InvalidArgument Kind Log Metrics NatsCluster NatsServer
NoJetStream NoResponders NotAllPublished NotFound NotSupported OutOfRange PayloadTooLarge
PermissionDenied PublishUnknown RateLimit Recover Reject ResourceExhausted Retry Service Settings
SetupError Side Spec Stored StoredMany Stream StreamConflict StreamFull StreamMissing Tap Topic
Trace Unauthenticated Unavailable Unimplemented Unknown Validate Wrapper current_call
endpoint_options once only"""


def test_public_names_are_exactly_these():
    """A change of the public names is a change of this list, seen by whoever reviews it."""
    assert sorted(busmicro.__all__) == sorted(CONTRACT.split())
    assert all(getattr(busmicro, name) is not None for name in busmicro.__all__)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_fit_in_one_reading(path: Path):
    """No file outgrows a reading, no function a screen, and every file says what it holds."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)

    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= MAX_BODY, f"{path.name}:{node.lineno} {node.name}: {length} lines"


def test_files_are_not_named_after_nothing():
    """There is no drawer for odds and ends."""
    names = {path.stem for path in SOURCES}
    assert not names & {"utils", "util", "helpers", "common", "manager", "misc"}


def test_links_in_the_documents_lead_somewhere():
    """Every relative link in a document points at a file that is there."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} → {target}"


def test_adrs_name_tests_that_exist():
    """A decision that says what holds it is held by something."""
    for adr in (ROOT / "docs" / "adr").glob("*.md"):
        for path, _, name in re.findall(
            r"`(tests/[\w/.]+?)(::(\w+))?`", adr.read_text(encoding="utf-8")
        ):
            assert (ROOT / path).exists(), f"{adr.name} → {path}"
            if name:
                assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_import_of_busmicro_brings_no_command_line():
    """A service does not load what only the command needs."""
    code = "import busmicro, busmicro.service, sys; print('click' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "False"
