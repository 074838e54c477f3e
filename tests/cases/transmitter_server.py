"""A transmitter over TLS: its keys, and a verification endpoint that answers by pushing what was asked for.

CERTIFICATE KEY PORT DIRECTORY WRIT-SOCKET. DIRECTORY/current.json names who signs now: {"directory", "kid"}. While DIRECTORY/silent
exists, what is asked to be verified is accepted, and nothing is pushed.
"""

import http.server
import json
import pathlib
import ssl
import subprocess
import sys
import threading
import time

certificate, key, port, directory, writ = sys.argv[1:6]
directory = pathlib.Path(directory)
signer = pathlib.Path(__file__).with_name("transmitter.py")
VERIFICATION = "https://schemas.openid.net/secevent/ssf/event-type/verification"


def current():
    return json.loads((directory / "current.json").read_text())


def push(asked):
    now = current()
    claims = {
        "iss": "https://idp.example", "aud": "https://host.example", "iat": int(time.time()), "jti": asked["state"],
        "sub_id": {"format": "opaque", "id": asked["stream_id"]}, "events": {VERIFICATION: {"state": asked["state"]}},
    }
    header = {"alg": "RS256", "typ": "secevent+jwt", "kid": now["kid"]}
    token = subprocess.run(
        [sys.executable, str(signer), now["directory"], json.dumps(claims), json.dumps(header)],
        check=True, capture_output=True, text=True,
    ).stdout
    done = subprocess.run(
        ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--unix-socket", writ,
         "--header", "Content-Type: application/secevent+jwt", "--data", token, "http://writ/v1/ssf/events"],
        capture_output=True, text=True,
    ).stdout
    print(f"pushed with {now['kid']}: {done}", flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        now = current()
        keys = json.loads((pathlib.Path(now["directory"]) / "keys.jwks").read_text())
        for one in keys["keys"]:
            one["kid"] = now["kid"]
        print("asked for keys", flush=True)
        self.answer(200, json.dumps(keys).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not (directory / "silent").exists():
            threading.Thread(target=push, args=(asked,), daemon=True).start()
        self.answer(204)

    def log_message(self, form, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
