"""Signs security event tokens with PyJWT: DIRECTORY, then a JSON array of {"claims", "headers"?, "alg"?, "key"?} on the input
-> a JSON array of tokens.

Keys are made on the first call, one for each algorithm; their JWKS is DIRECTORY/keys.jwks.
"""

import json
import pathlib
import sys

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa


def with_a_leading_zero():
    """A point whose x begins with a zero octet: one in 256 does, and PyJWT publishes it without."""
    while True:
        key = ec.generate_private_key(ec.SECP256R1())
        if key.public_key().public_numbers().x.bit_length() <= 248:
            return key


MADE = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": with_a_leading_zero,
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
WRITTEN = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}

directory = pathlib.Path(sys.argv[1])
keys = {}
for algorithm, make in MADE.items():
    file = directory / f"{algorithm}.pem"
    if not file.exists():
        pem = make().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(pem)
    keys[algorithm] = serialization.load_pem_private_key(file.read_bytes(), None)


def published(algorithm):
    written = WRITTEN[algorithm].to_jwk(keys[algorithm].public_key())
    return {**(written if isinstance(written, dict) else json.loads(written)), "kid": algorithm, "use": "sig"}


jwks = directory / "keys.jwks"
if not jwks.exists():
    jwks.write_text(json.dumps({"keys": [published(algorithm) for algorithm in MADE]}))

tokens = []
for wanted in json.load(sys.stdin):
    algorithm = wanted.get("alg", "RS256")
    headers = {"typ": "secevent+jwt", "kid": algorithm, **wanted.get("headers", {})}
    key = {"none": None, "HS256": "shared"}.get(algorithm) if algorithm not in keys else keys[algorithm]
    tokens.append(jwt.encode(wanted["claims"], key, algorithm=algorithm, headers=headers))
json.dump(tokens, sys.stdout)
