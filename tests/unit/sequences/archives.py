"""Compressed copies of bytes, for the tests of reading them."""

import bz2
import gzip
import lzma

import zstandard


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


COMPRESS = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": _zstd,
}
ARCHIVES = [kind for kind in COMPRESS if kind != "plain"]
