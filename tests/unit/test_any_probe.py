"""Whatever is sent to the port of the probes gets one whole answer of HTTP."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from busmicro.probes import Probes
from busmicro.rpc import Health

HEALTH = Health(
    status="serving", service="shop", node="n1", version="1.0.0", connected=True, uptime=1.0
)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "get", "", "GET\t", "\x00"])
PATHS = st.sampled_from(
    ["/health/live", "/health/ready?x=1", "/health/live/..", "//", "*", "/%2e", "/é", ""]
)
HEADS = st.binary(max_size=60) | st.builds(
    lambda method, path, rest: f"{method} {path} {rest}\r\nHost: x".encode() + b"\r\n\r\n",
    METHODS,
    PATHS,
    st.sampled_from(["HTTP/1.1", "", "HTTP/9", "a b c"]),
)


@given(HEADS)
def test_any_request_gets_one_whole_answer(head: bytes):
    """Nothing raises, the length is that of the body, and only known paths are answered well."""
    probes = Probes(lambda: HEALTH, lambda: 0.0, host="127.0.0.1", port=0)

    block, _, body = probes._answer(head).partition(b"\r\n\r\n")

    status, *lines = block.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
    path = rest.split(b" ")[0].split(b"?")[0]
    assert status.startswith(b"HTTP/1.1 ")
    assert len(body) == (0 if method == b"HEAD" else int(fields[b"Content-Length"]))
    is_known = path in {b"/health/live", b"/health/ready", b"/metrics"}
    assert (b" 200 " in status) == (is_known and method in {b"GET", b"HEAD"})
