#!/usr/bin/env python3
"""Between nginx's auth_request and writ's decision point: a GET with headers becomes an AuthZEN question.

    X-Account   the service account, as nginx authenticated it      -> subject
    X-Method    the request's method                                -> action "GET", "POST", …
    X-Resource  the request's path                                  -> resource of type Route

204 is a permit, 403 a refusal; whatever goes wrong is a 503, which nginx refuses too. Only nginx may reach the socket:
whoever can speak to it can name any account. Only the standard library is used.
"""

import http.client
import http.server
import json
import os
import socket
import socketserver
import sys

WRIT = os.environ.get("WRIT_SOCKET", "/run/writ/writ.sock")


def ask(account, method, route):
    """writ's status and answer."""
    connection = http.client.HTTPConnection("writ", timeout=4)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(4)
    connection.sock.connect(WRIT)
    question = {
        "subject": {"type": "service_account", "id": account},
        "action": {"name": method},
        "resource": {"type": "Route", "id": route},
    }
    try:
        connection.request("POST", "/access/v1/evaluation", json.dumps(question), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}") if answer.status == 200 else {}
    finally:
        connection.close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        given = [self.headers.get(name) for name in ("X-Account", "X-Method", "X-Resource")]
        try:
            status, answer = ask(*given) if all(given) else (403, {})
        except (OSError, ValueError, http.client.HTTPException):
            status, answer = 503, {}
        permitted = status == 200 and answer.get("decision") is True
        self.send_response(204 if permitted else 403 if status in (200, 403) else 503)
        self.send_header("X-Writ-Decision", answer.get("context", {}).get("decision_id", ""))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def address_string(self):
        return "unix"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    path = sys.argv[1]
    if os.path.exists(path):
        os.unlink(path)
    os.umask(0o117)  # Owner and group: put nginx's user into the group.
    Server(path, Handler).serve_forever()
