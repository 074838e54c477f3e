"""Signs a security event token with the stock `openssl`: DIRECTORY CLAIMS-JSON [HEADER-JSON] -> the token.

The key is made on the first call; its JWKS is DIRECTORY/keys.jwks.
"""

import base64
import json
import pathlib
import subprocess
import sys


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def openssl(*arguments, given=None):
    return subprocess.run(["openssl", *arguments], input=given, check=True, capture_output=True).stdout


directory = pathlib.Path(sys.argv[1])
key = directory / "key.pem"
if not key.exists():
    openssl("genrsa", "-out", str(key), "2048")
    modulus = openssl("rsa", "-in", str(key), "-noout", "-modulus").decode().strip().split("=")[1]
    jwk = {"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig", "e": "AQAB", "n": encoded(bytes.fromhex(modulus))}
    (directory / "keys.jwks").write_text(json.dumps({"keys": [jwk]}))
header = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {"alg": "RS256", "typ": "secevent+jwt", "kid": "k1"}
signed = encoded(json.dumps(header).encode()) + "." + encoded(sys.argv[2].encode())
signature = openssl("dgst", "-sha256", "-sign", str(key), given=signed.encode()) if header["alg"] == "RS256" else b""
print(signed + "." + encoded(signature), end="")
