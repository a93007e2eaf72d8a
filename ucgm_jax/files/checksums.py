"""SHA-256 of files and folders."""

from __future__ import annotations

import hashlib
import pathlib


def sha256(path: pathlib.Path) -> str:
    """SHA-256, in hexadecimal, of a file, or of the names and contents of all files in a folder."""
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for one in sorted(one for one in path.rglob("*") if one.is_file()):
        digest.update(f"{one.relative_to(path).as_posix()} {sha256(one)}\n".encode())
    return digest.hexdigest()
