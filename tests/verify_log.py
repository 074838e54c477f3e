#!/usr/bin/env python3
"""A second verifier, in another language and from the specifications alone: RFC 6962, C2SP signed-note and tlog-tiles.

    verify_log.py LOGDIR [VKEY]
    verify_log.py --vectors

Recomputes the tree's root from records/*.jsonl, compares it with the signed checkpoint, checks the Ed25519 signature
(RFC 8032) and every hash tile and entry bundle. Exit code 0: verified; 1: not. Standard library only. With --vectors it
checks itself against the specifications' own examples.
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


def opened(note, vkey):
    """The text of a signed note, and the name of the key that signed it."""
    name, key_id, encoded = vkey.strip().split("+", 2)
    key = base64.b64decode(encoded)
    assert sha(name.encode() + b"\n" + key)[:4].hex() == key_id and key[0] == 1, "the key's id does not belong to it"
    text, signatures = note.rsplit("\n\n", 1)
    text += "\n"
    ours = [base64.b64decode(line.split(" ")[2]) for line in signatures.splitlines() if line.split(" ")[1] == name]
    ours = [signature[4:] for signature in ours if signature[:4].hex() == key_id]
    assert ours, "the note is not signed by the key"
    assert all(ed25519(key[1:], text.encode(), signature) for signature in ours), "the signature is wrong"
    return text, name


def verify(log, vkey=None):
    text, name = opened((log / "checkpoint").read_text(), vkey or (log / "writ.vkey").read_text())
    origin, size, expected = text.split("\n")[:3]
    size = int(size)
    assert origin == name, "the checkpoint is of another log"

    lines, hashes = [], []
    for segment in sorted((log / "records").glob("*.jsonl")):
        first = int(segment.stem)
        if not lines and first:  # Removed lines: their hashes are in the tiles.
            for index in range(-(-first // 256)):
                data = tile(log, f"0/{tile_name(index)}", 1)
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
            data = tile(log, f"{level}/{tile_name(index)}", len(part))
            assert data[:32 * len(part)] == b"".join(part), f"tile {level}/{index}"
            tiles += 1
            bundle = lines[index * 256:index * 256 + len(part)]
            if level == 0 and None not in bundle:
                data = b"".join(len(line).to_bytes(2, "big") + line for line in bundle)
                assert tile(log, f"entries/{tile_name(index)}", len(part)).startswith(data), f"entries {index}"
        below = [root(below[at:at + 256]) for at in range(0, len(below) - 255, 256)]
        level += 1
    print(f"verified: {origin}, {size} records, {tiles} tiles, {len(lines) - size} unsigned")


def tile(log, name, width):
    """The tile, or where it is partial the narrowest that is wide enough: a later one has all of an earlier."""
    full = log / "tile" / name
    partial = sorted(int(path.name) for path in full.with_name(full.name + ".p").glob("*") if path.name.isdigit())
    wide = [path for path in partial if path >= width]
    assert full.exists() or wide, f"tile {name} is missing"
    return (full if full.exists() else full.with_name(full.name + ".p") / str(wide[0])).read_bytes()


def tile_name(index):
    groups = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03}")
    return "/".join(groups)


def vectors():
    """The examples of RFC 8032 (7.1, test 3), of the C2SP signed-note text, and the trees that RFC 6962 logs are tested with."""
    public = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    signature = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a")
    assert ed25519(public, bytes.fromhex("af82"), signature), "RFC 8032"
    assert not ed25519(public, bytes.fromhex("af83"), signature), "RFC 8032, another message"

    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    text = ("If you think cryptography is the answer to your problem,\n"
            "then you don't know what your problem is.\n")
    signed = ("\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n")
    assert opened(text + signed, vkey) == (text, "PeterNeumann"), "signed-note"
    try:
        opened(text.replace("answer", "reason") + signed, vkey)
    except AssertionError:
        pass
    else:
        raise AssertionError("signed-note: a changed text passed")

    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    heads = {0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
             1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
             3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
             7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
             8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"}
    hashes = [sha(b"\x00" + bytes.fromhex(leaf)) for leaf in leaves]
    for size, head in heads.items():
        assert root(hashes[:size]).hex() == head, f"RFC 6962, {size} leaves"
    assert tile_name(1234067) == "x001/x234/067", "tlog-tiles"
    print("vectors: right")


if __name__ == "__main__":
    try:
        if sys.argv[1] == "--vectors":
            vectors()
        else:
            verify(pathlib.Path(sys.argv[1]), *sys.argv[2:3])
    except (AssertionError, ValueError, OSError, StopIteration) as error:
        sys.exit(f"NOT VERIFIED: {error!r}")
