"""Connecting: every way to log in, TLS with a private authority, and what is told when it fails."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import ipaddress
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from busmicro import Disconnected, NatsServer, Settings, SetupError, Unauthenticated
from busmicro.transport import NatsTransport

Serve = Callable[[str], AbstractAsyncContextManager[NatsServer]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Start a server with a configuration."""

    @asynccontextmanager
    async def start(config: str) -> AsyncIterator[NatsServer]:
        file = tmp_path / "nats.conf"
        file.write_text(config)
        async with NatsServer(config=file, jetstream=False) as server:
            yield server

    return start


async def connected(url: str, **settings: object) -> str:
    """Connect, pass a barrier, and return the server that was reached."""
    transport = NatsTransport(Settings.load(nats_url=url, **settings))
    await transport.connect()
    try:
        await transport.barrier()
        return transport.server_url
    finally:
        await transport.close()


@dataclass
class Key:
    """An nkey."""

    seed: bytes
    public: str

    @staticmethod
    def make(prefix: int) -> Key:
        seed = nkeys.encode_seed(secrets.token_bytes(32), prefix)
        return Key(bytes(seed), nkeys.from_seed(bytearray(seed)).public_key.decode())


def jwt(
    issuer: Key, subject: str, kind: str, *, expires: int | None = None, **claims: object
) -> str:
    """Write what `nsc` writes, as far as a server reads it."""

    def encoded(part: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

    body = {
        "iat": int(dt.datetime.now(dt.UTC).timestamp()),
        "iss": issuer.public,
        "name": kind,
        "sub": subject,
        "nats": {**claims, "type": kind, "version": 2},
    }
    if expires is not None:
        body["exp"] = expires
    digest = hashlib.sha256(json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    text = f"{encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{encoded(body)}"
    signature = nkeys.from_seed(bytearray(issuer.seed)).sign(text.encode())
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


PASSWORD = "authorization { user: john, password: hunter2 }"


async def test_user_and_password_log_in(serve: Serve):
    """`user` and `password` are enough to get in."""
    async with serve(PASSWORD) as server:
        assert await connected(server.url, user="john", password="hunter2") == server.url


async def test_user_and_password_in_the_url_log_in_and_are_not_shown(serve: Serve):
    """A URL may hold the login, and no part of busmicro shows it again."""
    async with serve(PASSWORD) as server:
        url = server.url.replace("//", "//john:hunter2@")

        assert await connected(url) == server.url


async def test_token_logs_in(serve: Serve):
    """`token` is enough to get in."""
    async with serve("authorization { token: s3cret }") as server:
        await connected(server.url, token="s3cret")


async def test_nkey_seed_logs_in(serve: Serve):
    """`nkey_seed` is enough to get in; the seed itself is never sent."""
    user = Key.make(nkeys.PREFIX_BYTE_USER)
    async with serve(f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}") as server:
        await connected(server.url, nkey_seed=user.seed.decode())


async def test_credentials_file_logs_in(serve: Serve, tmp_path: Path):
    """`creds` names a file as `nsc` writes it, and is enough to get in."""
    operator = Key.make(nkeys.PREFIX_BYTE_OPERATOR)
    account, user = Key.make(nkeys.PREFIX_BYTE_ACCOUNT), Key.make(nkeys.PREFIX_BYTE_USER)
    unlimited = {"subs": -1, "data": -1, "payload": -1}
    limits = {**unlimited, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    account_jwt = jwt(operator, account.public, "account", limits=limits)
    user_jwt = jwt(account, user.public, "user", pub={}, sub={}, **unlimited)
    creds = tmp_path / "john.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    config = (
        f"operator: {jwt(operator, operator.public, 'operator')}\n"
        f"resolver: MEMORY\nresolver_preload: {{ {account.public}: {account_jwt} }}\n"
    )

    async with serve(config) as server:
        await connected(server.url, creds=creds)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (PASSWORD, {}),
        (PASSWORD, {"user": "john", "password": "wrong"}),
        ("authorization { token: s3cret }", {"token": "wrong"}),
        (
            f"authorization {{ users: [ {{ nkey: {Key.make(nkeys.PREFIX_BYTE_USER).public} }} ] }}",
            {"nkey_seed": Key.make(nkeys.PREFIX_BYTE_USER).seed.decode()},
        ),
    ],
    ids=["nothing", "password", "token", "nkey"],
)
@pytest.mark.parametrize("wait", [False, True])
async def test_wrong_credentials_are_told_at_once(
    serve: Serve, config: str, settings: dict[str, object], wait: bool
):
    """Who may not get in is told so in a moment, which settings to mend, and no secret is shown."""
    async with serve(config) as server:
        transport = NatsTransport(Settings.load(nats_url=server.url, **settings))

        began = time.perf_counter()
        with pytest.raises(Unauthenticated, match="BUSMICRO_USER") as refused:
            await transport.connect(wait=wait)

        assert time.perf_counter() - began < 1.0
        assert refused.value.not_run
        assert not any(str(value) in str(refused.value) for value in settings.values())
        assert not transport.connected
        await transport.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"creds": "no-such-file"},
        {"tls_ca": "no-such-file"},
        {"tls_cert": "no-such-file"},
        {"nkey_seed": "SUNOTASEED"},
    ],
    ids=lambda settings: next(iter(settings)),
)
async def test_settings_that_cannot_work_are_told_and_not_waited_for(
    serve: Serve, settings: dict[str, object]
):
    """A file that is not there is told at once, even by a process that waits for the server."""
    user = Key.make(nkeys.PREFIX_BYTE_USER)
    config = f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}"

    async with serve(config) as server, asyncio.timeout(5):
        with pytest.raises(SetupError, match="BUSMICRO_"):
            await NatsTransport(Settings.load(nats_url=server.url, **settings)).connect(wait=True)


async def test_certificate_file_that_is_none_is_told(serve: Serve, tmp_path: Path):
    """A file that holds no certificate is told at once by name."""
    (tmp_path / "ca.pem").write_text("not a certificate")

    async with serve("") as server:
        with pytest.raises(SetupError, match="BUSMICRO_TLS"):
            await connected(server.url, tls_ca=tmp_path / "ca.pem")


async def test_waiting_for_a_server_says_so_and_connects_when_it_comes(
    server: NatsServer, caplog: pytest.LogCaptureFixture
):
    """A process that starts before its server says what it waits for, then goes on."""
    server.kill()
    transport = NatsTransport(Settings.load(nats_url=server.url))

    with caplog.at_level(logging.WARNING):
        connecting = asyncio.get_running_loop().create_task(transport.connect(wait=True))
        async with asyncio.timeout(5):
            while "waiting for it" not in caplog.text:
                await asyncio.sleep(0.005)
        await server.restart()
        async with asyncio.timeout(10):
            await connecting

    await transport.barrier()
    await transport.close()


async def test_second_server_is_used_when_the_first_is_not_there(server: NatsServer):
    """Of several servers one is enough, in whatever order they are named."""
    for _ in range(6):
        assert await connected(f"nats://127.0.0.1:1,{server.url}") == server.url


async def test_connect_that_is_given_up_leaves_nothing():
    """A process that gives up connecting keeps no task."""
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"

        with pytest.raises(Disconnected):
            await connected(url, connect_timeout=0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connected(url)

    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.005)


# --- TLS ------------------------------------------------------------------------------------------


@dataclass
class Authority:
    """A private certificate authority and what it signed."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @staticmethod
    def make(folder: Path, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            draft(subject, subject, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        authority = Authority(folder, key, certificate)
        authority.write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        return authority

    def sign(self, name: str, *, address: str | None = "127.0.0.1") -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if address:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            draft(subject, self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            self.write(f"{name}.pem", certificate.public_bytes(pem)),
            self.write(f"{name}.key", private),
        )

    def write(self, name: str, content: bytes) -> Path:
        file = self.folder / name
        file.write_bytes(content)
        return file


def draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A private authority; its certificate is `ca.pem`."""
    return Authority.make(tmp_path, "ca")


def tls(files: tuple[Path, Path], more: str = "") -> str:
    return f'tls {{ cert_file: "{files[0]}", key_file: "{files[1]}", {more} }}'


@pytest.mark.parametrize("first", [False, True])
async def test_tls_with_a_private_authority_works(serve: Serve, authority: Authority, first: bool):
    """`tls_ca` makes a server of one's own trusted, with the handshake first or after INFO."""
    config = tls(authority.sign("bus"), "handshake_first: true" if first else "")

    async with serve(f"{config}\n{PASSWORD}") as server:
        ca = authority.folder / "ca.pem"
        login = {"user": "john", "password": "hunter2"}
        await connected(server.url, tls_ca=ca, tls_first=first, **login)
        await connected(
            server.url.replace("nats://", "tls://"), tls_ca=ca, tls_first=first, **login
        )


async def test_large_messages_travel_over_tls(serve: Serve, authority: Authority):
    """What is larger than a TLS record arrives whole, many times over."""
    async with serve(tls(authority.sign("bus"))) as server:
        settings = Settings.load(nats_url=server.url, tls_ca=authority.folder / "ca.pem")
        transport = NatsTransport(settings)
        await transport.connect()
        arrived: list[bytes] = []
        transport.subscribe("large", lambda _s, _r, _h, payload: arrived.append(payload))
        payload = secrets.token_bytes(900_000)

        for _ in range(10):
            transport.publish(b"large", payload)
            await transport.barrier()

        assert arrived == [payload] * 10
        await transport.close()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("wait", [False, True])
async def test_wrong_authority_is_told_with_the_setting(
    serve: Serve, authority: Authority, first: bool, wait: bool
):
    """A server that is not trusted is told at once, with the setting, and never waited for."""
    Authority.make(authority.folder, "other")
    config = tls(authority.sign("bus"), "handshake_first: true" if first else "")

    async with serve(config) as server, asyncio.timeout(5):
        for given in ({"tls_ca": authority.folder / "other.pem"}, {}):
            transport = NatsTransport(Settings.load(nats_url=server.url, tls_first=first, **given))
            with pytest.raises(SetupError, match="BUSMICRO_TLS_CA"):
                await transport.connect(wait=wait)


async def test_certificate_for_another_name_needs_tls_hostname(serve: Serve, authority: Authority):
    """A certificate for another name is refused, unless `tls_hostname` says which one it is."""
    ca = authority.folder / "ca.pem"
    async with serve(tls(authority.sign("bus.example", address=None))) as server:
        with pytest.raises(SetupError, match="BUSMICRO_TLS_HOSTNAME"):
            await connected(server.url, tls_ca=ca)

        await connected(server.url, tls_ca=ca, tls_hostname="bus.example")


async def test_client_certificate_logs_in(serve: Serve, authority: Authority):
    """A server that asks for a certificate gets the one in `tls_cert` and `tls_key`."""
    ca = authority.folder / "ca.pem"
    cert, key = authority.sign("client")
    async with serve(tls(authority.sign("bus"), f'ca_file: "{ca}", verify: true')) as server:
        await connected(server.url, tls_ca=ca, tls_cert=cert, tls_key=key)

        with pytest.raises((Disconnected, Unauthenticated, SetupError)):
            await connected(server.url, tls_ca=ca)
