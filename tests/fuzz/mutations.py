"""Seeded mutations of bytes, fields, text and JSON, and of what packed files hold.

Some files have checksums or are packed: their mutants are packed again, with new checksums, so that the
damage gets past the checksum.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

HOSTILE = (
    *(0, 1, 2, 3, 7, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1),
    *(2**64 - 1, -1, -2, 1000, 65_000, 10**9),
)
WORDS: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\x1b[2J", "../..", "/dev/zero", "|O", "<f8", "pickle", "NaN"),
    *(0, -1, 1, 1.5, 2**31, 2**63, 10**30, 1e308),
    *([], [0], [-1], [10**12, 28, 28], {}, {"id": "pickle"}, {"name": "bytes"}),
)

Mutation = Callable[[bytes, random.Random], bytes]


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, insert, remove, repeat or cut bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, n = rng.randrange(len(out) + 1), min(rng.choice((1, 1, 2, 4, 8, 64, 512)), len(out))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + n] = rng.randbytes(n)
        elif kind == 2:
            out[at:at] = rng.randbytes(n)
        elif kind == 3:
            del out[at : at + n]
        elif kind == 4:
            out[at:at] = out[max(0, at - n) : at] * rng.choice((1, 3, 100))
        else:
            del out[at:]
    return bytes(out)


def change_field(data: bytes, rng: random.Random) -> bytes:
    """Write a hostile number over an integer of 1, 2, 4 or 8 bytes, mostly near the start or the end."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        width = rng.choice((1, 2, 4, 4, 8))
        if len(out) < width:
            return bytes(out)
        near = min(len(out) - width, rng.choice((32, 128, 512, 10**6)))
        at = rng.randrange(near + 1)
        at = at if rng.random() < 0.8 else len(out) - width - at
        value = rng.choice(HOSTILE) % 2 ** (8 * width)
        out[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
    return bytes(out)


def change_text(data: bytes, rng: random.Random) -> bytes:
    """Replace a number or a word of a text, or repeat or swap lines."""
    text = data.decode("latin-1")
    found = list(re.finditer(r"-?\d+|[A-Za-z_|<>]+|[,.()\[\]{}'\"]", text))
    if not found or rng.random() < 0.2:
        lines = text.splitlines(keepends=True) or [""]
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[i], lines[j] = lines[j] * rng.choice((0, 1, 2)), lines[i]
        return "".join(lines).encode("latin-1")
    match = rng.choice(found)
    new = str(
        rng.choice((*HOSTILE, *WORDS, "1_0", "1e9", "True", "yes", "\u0661".encode().decode("latin-1")))
    )
    return (text[: match.start()] + new + text[match.end() :]).encode("latin-1", "replace")


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or add a value somewhere in a JSON document."""
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            visit(node[key])

    visit(document)
    for _ in range(rng.choice((1, 1, 2))):
        node, key = rng.choice(places)
        if isinstance(node, dict) and rng.random() < 0.1:
            node.pop(key, None)
        elif isinstance(node, dict) or key < len(node):
            node[key] = rng.choice((*WORDS, *HOSTILE))
    return json.dumps(document).encode()


PLAIN = (change_bytes, change_field)


# Mutations inside packed files, which are packed again.


def inside_zip(*mutations: Mutation) -> Mutation:
    """Return a mutation of a member of a zip archive."""

    def change(data: bytes, rng: random.Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        name = rng.choice(list(members))
        members[name] = rng.choice(mutations)(members[name], rng)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for each, content in members.items():
                archive.writestr(each, content)
        return packed.getvalue()

    return change


def inside_gzip(*mutations: Mutation) -> Mutation:
    """Return a mutation of what a gzip file holds."""
    return lambda data, rng: gzip.compress(rng.choice(mutations)(gzip.decompress(data), rng))


def inside_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, the JSON inside its metadata, or the values of its tensors."""
    n = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + n], data[8 + n :]
    kind, document = rng.random(), json.loads(header)
    if kind < 0.5:
        inside = document.get("__metadata__", {})
        if "patchindex" in inside:
            inside["patchindex"] = change_json(inside["patchindex"].encode(), rng).decode()
        header = json.dumps(document).encode()
    elif kind < 0.8:
        header = change_json(header, rng)
    else:
        body = (rng.choice(PLAIN)(body, rng) + body)[: len(body)]
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def inside_png(data: bytes, rng: random.Random) -> bytes:
    """Change a chunk of a PNG, and its checksum with it; add, repeat or swap chunks."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        (n,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + n]))
        at += 12 + n
    i = rng.randrange(len(chunks))
    kind, body = chunks[i]
    if kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(rng.choice(PLAIN)(zlib.decompress(body), rng))
    elif rng.random() < 0.15:
        kind = rng.choice((b"acTL", b"fcTL", b"tRNS", b"PLTE", b"eXIf", b"iTXt", b"zTXt", b"gAMA", b"fdAT"))
        chunks.insert(rng.randrange(len(chunks)), (kind, rng.randbytes(rng.choice((0, 4, 8, 26, 40)))))
    else:
        body = rng.choice(PLAIN)(body, rng)
    chunks[i] = kind, body
    if rng.random() < 0.1:
        rng.shuffle(chunks)
    packed = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return data[:8] + b"".join(packed)
