#!/usr/bin/env python3
"""A second verifier, in another language and from the specifications alone: RFC 6962, C2SP signed-note and tlog-tiles.

    verify_log.py LOGDIR [VKEY]

Recomputes the tree's root from records/*.jsonl, compares it with the signed checkpoint, checks the Ed25519 signature
(RFC 8032) and every hash tile and entry bundle. Exit code 0: verified; 1: not. Standard library only.
"""
import base64, hashlib, pathlib, sys

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def sha(data):
    return hashlib.sha256(data).digest()


def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add(q, p)
        p, n = add(p, p), n >> 1
    return q


def point(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - x2) % P or y >= P:
        raise ValueError("not a point of the curve")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519(public, message, signature):
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    k = int.from_bytes(hashlib.sha512(r + public + message).digest(), "little") % L
    one, two = times(s, BASE), add(point(r), times(k, point(public)))
    return s < L and all((one[i] * two[2] - two[i] * one[2]) % P == 0 for i in (0, 1))


def root(hashes):
    """RFC 6962, 2.1, level by level: an odd one at the end moves up unchanged."""
    if not hashes:
        return sha(b"")
    while len(hashes) > 1:
        pairs = [sha(b"\x01" + a + b) for a, b in zip(hashes[::2], hashes[1::2])]
        hashes = pairs + hashes[len(pairs) * 2:]
    return hashes[0]


def verify(log, vkey=None):
    vkey = (vkey or (log / "writ.vkey").read_text()).strip()
    name, key_id, encoded = vkey.split("+", 2)
    key = base64.b64decode(encoded)
    assert sha(name.encode() + b"\n" + key)[:4].hex() == key_id and key[0] == 1, "the key's id does not belong to it"

    text, signatures = (log / "checkpoint").read_text().rsplit("\n\n", 1)
    text += "\n"
    origin, size, expected = text.split("\n")[:3]
    size = int(size)
    ours = [base64.b64decode(line.split(" ")[2]) for line in signatures.splitlines() if line.split(" ")[1] == name]
    ours = [signature[4:] for signature in ours if signature[:4].hex() == key_id]
    assert ours and origin == name, "the checkpoint is not signed by the key"
    assert all(ed25519(key[1:], text.encode(), signature) for signature in ours), "the signature is wrong"

    lines, hashes = [], []
    for segment in sorted((log / "records").glob("*.jsonl")):
        first = int(segment.stem)
        if not lines and first:  # Removed lines: their hashes are in the tiles.
            for index in range(-(-first // 256)):
                full = log / f"tile/0/{tile_name(index)}"
                data = (full if full.exists() else next(log.glob(f"tile/0/{tile_name(index)}.p/*"))).read_bytes()
                hashes += [data[at:at + 32] for at in range(0, len(data), 32)]
            hashes, lines = hashes[:first], [None] * first
        assert first == len(lines), f"{segment.name} does not begin where the one before ends"
        whole = segment.read_bytes().split(b"\n")[:-1]
        lines += whole
        hashes += [sha(b"\x00" + line) for line in whole]
    assert len(lines) >= size, f"{size - len(lines)} signed records are missing"
    assert root(hashes[:size]) == base64.b64decode(expected), "the records are not those that were signed"

    level, below, tiles = 0, hashes[:size], 0
    while below:
        for index in range(-(-len(below) // 256)):
            part = below[index * 256:index * 256 + 256]
            suffix = "" if len(part) == 256 else f".p/{len(part)}"
            assert (log / f"tile/{level}/{tile_name(index)}{suffix}").read_bytes() == b"".join(part), f"tile {level}/{index}"
            tiles += 1
            bundle = lines[index * 256:index * 256 + len(part)]
            if level == 0 and None not in bundle:
                data = b"".join(len(line).to_bytes(2, "big") + line for line in bundle)
                assert (log / f"tile/entries/{tile_name(index)}{suffix}").read_bytes() == data, f"entries {index}"
        below = [root(below[at:at + 256]) for at in range(0, len(below) - 255, 256)]
        level += 1
    print(f"verified: {origin}, {size} records, {tiles} tiles, {len(lines) - size} unsigned")


def tile_name(index):
    groups = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03}")
    return "/".join(groups)


if __name__ == "__main__":
    try:
        verify(pathlib.Path(sys.argv[1]), *sys.argv[2:3])
    except (AssertionError, ValueError, OSError, StopIteration) as error:
        sys.exit(f"NOT VERIFIED: {error!r}")
