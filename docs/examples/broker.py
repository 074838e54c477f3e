#!/usr/bin/env python3
"""A small secrets broker that asks writ before it issues a key, and takes keys back when writ says that something changed.

A workload on this host asks for a key over the broker's unix socket; the kernel tells the broker which user it is. The
broker asks writ's decision point whether that account may have that credential *now*, issues a key for as long as the
answer allows, asks again on every renewal, and watches writ's change stream: when something about an account changes, it
asks again about every key the account holds, and revokes those it would not issue any more. If writ cannot be asked,
nothing is issued; if the stream breaks, every key is asked about again.

    POST /keys/NAME    issue or renew: 200 {"key", "expires"}, or 403 {"reason", "decision_id"}
    GET  /keys/NAME    200 while the caller's key is live, 404 otherwise

Only the standard library is used. Run it as an account that policy lets ask for others (Action::"evaluate").
"""

import argparse
import http.client
import http.server
import json
import os
import pwd
import secrets
import socket
import socketserver
import struct
import threading
import time
from datetime import datetime, timezone


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("writ", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Writ:
    """The decision point."""

    def __init__(self, path, posture=None):
        self.path = path
        self.posture = posture

    def known_of(self, account):
        """What has been verified about the account's workload, e.g. from the token of its CI system: read anew each time."""
        if self.posture is None:
            return None
        try:
            with open(self.posture, encoding="utf-8") as file:
                return json.load(file)[account]
        except (KeyError, ValueError) as error:
            raise OSError(f"nothing is known of {account}: {error}") from error

    def may_have(self, account, credential):
        """writ's answer to: may this account have this credential now?"""
        environment = "production" if credential.startswith("prod-") else "test"
        question = {
            "subject": {"type": "service_account", "id": account},
            "action": {"name": "issue"},
            "resource": {"type": "Credential", "id": credential, "properties": {"environment": environment}},
        }
        posture = self.known_of(account)
        if posture is not None:
            question["context"] = {"posture": {"type": "Posture", "id": posture["id"], "properties": posture["properties"]}}
        connection = UnixConnection(self.path, timeout=10)
        try:
            connection.request("POST", "/access/v1/evaluation", json.dumps(question), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise OSError(f"writ answered {answer.status}: {body.decode(errors='replace')}")
            return json.loads(body)
        finally:
            connection.close()

    def changes(self, since):
        """Every change, as (next index, account or None for all); ends when the stream does."""
        connection = UnixConnection(self.path, timeout=60)
        try:
            headers = {"Accept": "text/event-stream"}
            if since is not None:
                headers["Last-Event-ID"] = str(since)
            connection.request("GET", "/v1/changes", headers=headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"writ answered {answer.status}")
            event = {}
            for line in answer:
                line = line.decode().rstrip("\n")
                if line.startswith(":"):
                    continue
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                    continue
                if event.get("event") == "open":
                    yield int(event["id"]), ""
                elif event:
                    yield int(event["id"]), json.loads(event["data"]).get("account")
                event = {}
        finally:
            connection.close()


class Keys:
    """The keys that are out: (account, credential) -> (key, expires)."""

    def __init__(self, writ):
        self.writ = writ
        self.live = {}
        self.lock = threading.Lock()

    def issue(self, account, credential):
        """A key if writ permits one now, and writ's answer."""
        answer = self.writ.may_have(account, credential)
        with self.lock:
            if not answer["decision"]:
                self.live.pop((account, credential), None)
                return None, answer
            context = answer.get("context", {})
            # Without a limit of policy's own, the key lives as long as the answer holds.
            expires = context.get("expires") or context["valid_until"]
            known = self.live.get((account, credential))
            key = known[0] if known else secrets.token_urlsafe(24)
            self.live[account, credential] = (key, expires)
            return key, answer

    def holds(self, account, credential):
        """When the key ends, if it is live."""
        with self.lock:
            known = self.live.get((account, credential))
            if known and datetime.fromisoformat(known[1].replace("Z", "+00:00")) > datetime.now(timezone.utc):
                return known[1]
            self.live.pop((account, credential), None)
            return None

    def review(self, account):
        """Asks again about an account's keys (None: all), and takes back what would not be issued."""
        with self.lock:
            held = [pair for pair in self.live if account is None or pair[0] == account]
        for pair in held:
            try:
                permitted = self.writ.may_have(*pair)["decision"]
            except OSError:
                permitted = False  # A broker that cannot ask does not know, and a key must not outlive what is known.
            if not permitted:
                with self.lock:
                    self.live.pop(pair, None)
                print(f"revoked {pair[1]} of {pair[0]}", flush=True)

    def watch(self):
        """Follows the change stream for ever."""
        since = None
        while True:
            try:
                for since, account in self.writ.changes(since):
                    if account != "":
                        self.review(account)
                    else:
                        print("watching", flush=True)
            except (OSError, ValueError, http.client.HTTPException) as error:
                print(f"the change stream ended: {error}", flush=True)
                self.review(None)
            time.sleep(1)


class Handler(http.server.BaseHTTPRequestHandler):
    """The broker's own two operations."""

    protocol_version = "HTTP/1.1"

    def account(self):
        """The account of the peer's user, as the kernel knows it."""
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        user = pwd.getpwuid(struct.unpack("3i", credentials)[1]).pw_name
        return self.server.accounts.get(user)

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        account, credential = self.account(), self.path.removeprefix("/keys/")
        if account is None:
            return self.answer(403, {"reason": "this user is no service account"})
        try:
            key, said = self.server.keys.issue(account, credential)
        except OSError as error:
            return self.answer(503, {"reason": str(error)})
        context = said.get("context", {})
        if key is None:
            reason = context.get("reason_user", {}).get("en", "nothing permits it")
            return self.answer(403, {"reason": reason, "decision_id": context.get("decision_id")})
        expires = self.server.keys.holds(account, credential)
        return self.answer(200, {"key": key, "expires": expires, "scope": context.get("scope")})

    def do_GET(self):
        expires = self.server.keys.holds(self.account(), self.path.removeprefix("/keys/"))
        return self.answer(200 if expires else 404, {"expires": expires})

    def address_string(self):
        return "unix"

    def log_message(self, form, *arguments):
        print(form % arguments, flush=True)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--writ", default="/run/writ/writ.sock", help="writ's socket")
    options.add_argument("--listen", required=True, help="the broker's own socket")
    options.add_argument("--account", action="append", default=[], metavar="USER=ACCOUNT", help="whose user is which account")
    options.add_argument("--posture", metavar="FILE", help="JSON: account to {id, properties} of its Posture")
    given = options.parse_args()
    keys = Keys(Writ(given.writ, given.posture))
    threading.Thread(target=keys.watch, daemon=True).start()
    if os.path.exists(given.listen):
        os.unlink(given.listen)
    server = Server(given.listen, Handler)
    os.chmod(given.listen, 0o666)
    server.keys = keys
    server.accounts = dict(pair.split("=", 1) for pair in given.account)
    server.serve_forever()


if __name__ == "__main__":
    main()
