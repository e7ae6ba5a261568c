"""What a file is that is no FASTA, told by its first bytes, and what to do with it."""

from __future__ import annotations

from virnucpro.errors import InputError

__all__ = ["NEEDED", "foreign_error"]

NEEDED = 512
"""First bytes that tell what a file is: a tar archive has its mark at byte 257."""

_UNPACK = "unpack it, and give the FASTA file that is in it"
_READS = "FASTA of proteins is expected: assemble the reads and predict proteins first"
_PROTEINS = "FASTA of proteins is expected: "
_DOWNLOAD = "what was downloaded is no sequence file: look at it, and download it again"
_COMMENT = "remove the ';' comment lines before the first '>'"
_KINDS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (b"\xff\xfe", b"\xfe\xff", b">\0", b"\0>"),
        "is UTF-16 text",
        "convert it: iconv -f UTF-16 -t UTF-8 FILE > CLEAN",
    ),
    ((b"PK\x03\x04", b"PK\x05\x06"), "is a zip archive", _UNPACK),
    ((b"7z\xbc\xaf\x27\x1c",), "is a 7z archive", _UNPACK),
    ((b"Rar!\x1a\x07",), "is a rar archive", _UNPACK),
    (
        (b"\x1f\x9d", b"\x1f\xa0"),
        "is compressed by compress (.Z)",
        "unpack it: gzip -dc FILE > CLEAN",
    ),
    ((b"\x1f\x8b",), "is compressed twice, by gzip inside", "unpack it once: zcat FILE > FILE2"),
    ((b"BZh",), "is compressed twice, by bzip2 inside", "unpack it once"),
    ((b"\xfd7zXZ\0",), "is compressed twice, by xz inside", "unpack it once"),
    ((b"\x28\xb5\x2f\xfd",), "is compressed twice, by zstd inside", "unpack it once"),
    (
        (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"),
        "is compressed by lz4",
        "unpack it: lz4 -dc FILE > CLEAN",
    ),
    ((b"\x5d\0\0",), "is compressed by lzma, in its old format", "unpack it: xz -dc FILE > CLEAN"),
    ((b"LZIP",), "is compressed by lzip", "unpack it: lzip -dc FILE > CLEAN"),
    ((b"\xff\x06\0\0sNaPpY",), "is compressed by snappy", _UNPACK),
    ((b"\x89LZO",), "is compressed by lzop", "unpack it: lzop -dc FILE > CLEAN"),
    (
        (b"version https://git-lfs",),
        "is a pointer of Git LFS, in place of the file itself",
        "fetch the file: git lfs pull",
    ),
    ((b"%PDF",), "is a PDF", _PROTEINS + "ask for the sequences themselves"),
    ((b"\x89HDF",), "is an HDF5 file", _PROTEINS + "was an output given as input?"),
    ((b"PAR1",), "is a Parquet file", _PROTEINS + "was an output given as input?"),
    ((b"SQLite format 3",), "is an SQLite database", _PROTEINS + "export the sequences"),
    ((b"BAM\x01", b"CRAM"), "is an alignment of reads", _READS),
    ((b"LOCUS ",), "is a GenBank file", _PROTEINS + "export its translations as FASTA"),
    ((b"ID   ",), "is an EMBL or UniProt flat file", _PROTEINS + "download it as FASTA"),
    (
        (b"CLUSTAL", b"MUSCLE", b"# STOCKHOLM", b"#NEXUS", b"!!AA_MULTIPLE"),
        "is an alignment, but not in FASTA format",
        "convert it, with Biopython's AlignIO for instance",
    ),
    ((b"##gff", b"##GFF"), "is a GFF file", _PROTEINS + "give the FASTA file beside it"),
    ((b"{\\rtf",), "is a document of a word processor", "save it as plain text"),
    ((b"\xd0\xcf\x11\xe0",), "is a document of an office program", "save it as plain text"),
    ((b"@HD\t", b"@SQ\t"), "is an alignment of reads", _READS),
    ((b"@",), "looks like FASTQ ('@' where the first '>' is expected)", _READS),
    ((b"{", b"["), "is JSON", _DOWNLOAD),
    ((b";",), "has a ';' line before the first '>'", _COMMENT),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<xml", b"<error", b"<")
_TAR = slice(257, 262)


def foreign_error(content: bytes, *, path: str, line: int) -> InputError:
    """Say what a file is that does not begin with ">".

    Args:
        content: its first bytes, decompressed where it was compressed, white space left out.
        path: the file's name.
        line: where the content begins.

    Returns:
        The error, with a hint that fits the cause.
    """
    message, hint = "has text before the first '>'", "is it FASTA? Its first line begins with '>'"
    kind = next((kind for kind in _KINDS if content.startswith(kind[0])), None)
    if content[_TAR] == b"ustar":
        message, hint = "is a tar archive", "unpack it (tar -xf FILE), and give the files in it"
    elif kind is not None:
        _, message, hint = kind
    elif content[:9].lower().startswith(_MARKUP):
        message, hint = "is a web page or XML", _DOWNLOAD
    elif content[:64].count(b"\0"):
        message, hint = "is binary", "is it FASTA? It was not told what kind of file it is"
    return InputError(message, path=path, line=line, hint=hint)
