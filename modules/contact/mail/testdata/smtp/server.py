"""An SMTP server for tests: aiosmtpd, with faults that the recipient's address asks for.

The local part of an address is words joined by dots. One of them may name a step and an answer,
as in rcpt-550.alice@example.com; with -once, only the first mail to the address is answered so.
Each mail that the server takes, and each connection, is printed as a line of JSON.
"""
import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import ssl
import sys
import warnings

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

warnings.simplefilter("ignore")
logging.disable()
parser = argparse.ArgumentParser()
parser.add_argument("--cert")
parser.add_argument("--key")
parser.add_argument("--implicit", action="store_true", help="TLS from the start")
parser.add_argument("--user")
parser.add_argument("--password")
parser.add_argument("--mechanism", default="PLAIN", help="the only one that is offered")
parser.add_argument("--broken", default="", help="another one that is offered, and refuses everybody")
parser.add_argument("--mail", type=int, default=250, help="the answer to MAIL")
parser.add_argument("--greeting", type=int, default=220)
parser.add_argument("--without", default="", help="an extension that is not offered")
args = parser.parse_args()
seen = set()
released = asyncio.Event()


def tell(**what):
    print(json.dumps(what), flush=True)


def fault(address, step):
    """The answer that the address asks for at a step, or None."""
    for word in address.partition("@")[0].split("."):
        name, _, rest = word.partition("-")
        if name != step:
            continue
        code, _, once = rest.partition("-")
        if once == "once":
            if (address, step) in seen:
                continue
            seen.add((address, step))
        return code
    return None


class Handler:
    async def handle_MAIL(self, server, session, envelope, address, options):
        if args.mail != 250:
            return f"{args.mail} 5.7.1 you may not send"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        code = fault(address, "rcpt")
        if code == "slow":
            tell(waits=True)
            await asyncio.sleep(3600)
        if code == "policy":
            return "550 5.7.1 relaying denied"
        if code:
            return f"{code} 5.1.1 no such address" if code[0] == "5" else f"{code} 4.7.1 greylisted"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        to = envelope.rcpt_tos[0]
        code = fault(to, "data")
        if code == "slow":
            tell(waits=True)
            await asyncio.sleep(3600)
        if code == "wait":  # for the test to say so
            tell(waits=True)
            await released.wait()
        if code == "policy":
            return "554 5.7.1 your address is on a list"
        if code and code not in ("lost", "wait"):
            return f"{code} not taken"
        tell(mail_from=envelope.mail_from, to=to, text=envelope.content.decode("utf-8", "replace"),
             user=session.auth_data.login.decode() if session.authenticated and hasattr(session.auth_data, "login") else
             (session.auth_data if session.authenticated else ""),
             helo=session.host_name, utf8=envelope.smtp_utf8, tls=session.ssl is not None or args.implicit)
        if code == "lost":  # it has the mail, and nobody hears of it
            server.transport.abort()
            await asyncio.sleep(3600)
        return "250 OK: queued"


class Server(SMTP):
    def connection_made(self, transport):
        if self.session is None:
            tell(connected=True)
        super().connection_made(transport)

    async def push(self, status):
        if isinstance(status, str) and status.startswith("220 ") and "SMTP" in status and args.greeting != 220:
            status = f"{args.greeting} not now"
        if args.without and isinstance(status, str) and status[4:].split(" ")[0] == args.without:
            return None
        return await super().push(status)

    async def auth_SCRAM__SHA__256(self, server, words):
        """RFC 5802 without channel binding."""
        if args.broken == "SCRAM-SHA-256":
            await server.push("454 4.7.0 Temporary authentication failure: generic failure")
            return AuthResult(success=False, handled=True)
        first = base64.b64decode(words[1]) if len(words) > 1 else await self.challenge_auth("")
        first = first.decode()
        bare = first.split(",", 2)[2]
        nonce = bare.split("r=")[1] + base64.b64encode(os.urandom(12)).decode()
        salt, rounds = os.urandom(16), 4096
        challenge = f"r={nonce},s={base64.b64encode(salt).decode()},i={rounds}"
        final = await self.challenge_auth(challenge.encode())
        final = final.decode()
        without, _, proof = final.rpartition(",p=")
        salted = hashlib.pbkdf2_hmac("sha256", args.password.encode(), salt, rounds)
        def mac(key, text):
            return hmac.new(key, text, "sha256").digest()
        client = mac(salted, b"Client Key")
        signed = ",".join([bare, challenge, without]).encode()
        expected = bytes(a ^ b for a, b in zip(client, mac(hashlib.sha256(client).digest(), signed)))
        if bare != f"n={args.user},r={bare.split('r=')[1]}" or not hmac.compare_digest(expected, base64.b64decode(proof)):
            return AuthResult(success=False, handled=False)
        verifier = b"v=" + base64.b64encode(mac(mac(salted, b"Server Key"), signed))
        await self.challenge_auth(verifier)
        return AuthResult(success=True, auth_data=args.user)


def authenticate(server, session, envelope, mechanism, auth_data):
    tell(signs_in=mechanism)
    good = mechanism != args.broken and auth_data.login == (args.user or "").encode() and auth_data.password == (args.password or "").encode()
    return AuthResult(success=good, handled=good, auth_data=auth_data)


context = None
if args.cert:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(args.cert, args.key)


class Here(Controller):
    def factory(self):
        exclude = {"PLAIN", "LOGIN", "SCRAM-SHA-256"} - {args.mechanism, args.broken}
        return Server(self.handler, hostname="mx.example.test", enable_SMTPUTF8=True, authenticator=authenticate,
                      auth_required=bool(args.user), auth_require_tls=False, auth_exclude_mechanism=exclude,
                      tls_context=None if args.implicit else context, timeout=600)


async def main():
    here = Here(Handler())
    server = await asyncio.get_running_loop().create_server(here.factory, "127.0.0.1", 0,
                                                            ssl=context if args.implicit else None)
    tell(port=server.sockets[0].getsockname()[1])
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):  # until the test ends
        if line == "release\n":
            released.set()
            continue
        tell(asked=int(line))  # whatever happened before is said
    os._exit(0)


asyncio.run(main())
