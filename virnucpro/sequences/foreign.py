"""What a file is that is no FASTA, told by its first bytes, and what to do with it."""

from __future__ import annotations

import re

from virnucpro.errors import InputError
from virnucpro.sequences.body import SPACE, is_header

__all__ = ["NEEDED", "foreign_error", "is_wide_text"]

NEEDED = 512
"""First bytes that tell what a file is: the header of a tar archive has as many."""

_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))

_UNPACK = "unpack it, and give the FASTA file that is in it"
_READS = "FASTA of proteins is expected: assemble the reads and predict proteins first"
_PROTEINS = "FASTA of proteins is expected: "
_DOWNLOAD = "what was downloaded is no sequence file: look at it, and download it again"
_COMMENT = "remove the ';' comment lines before the first '>'"
_KINDS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (b"\xff\xfe\0\0", b"\0\0\xfe\xff", b">\0\0\0", b"\0\0\0>"),
        "is UTF-32 text",
        "convert it: iconv -f UTF-32 -t UTF-8 FILE > CLEAN",
    ),
    (
        (b"\xff\xfe", b"\xfe\xff", b">\0", b"\0>"),
        "is UTF-16 text",
        "convert it: iconv -f UTF-16 -t UTF-8 FILE > CLEAN",
    ),
    (
        (b"PK\x03\x04", b"PK\x05\x06"),
        "is a zip archive, or a document of an office program",
        "unpack it, or save it as plain text, and give the FASTA file",
    ),
    ((b"!<arch>",), "is an ar archive", _UNPACK),
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
    ((b"ARROW1", b"FEA1"), "is an Arrow file", _PROTEINS + "was an output given as input?"),
    ((b"\x93NUMPY",), "is an array of NumPy", _PROTEINS + "was an output given as input?"),
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF8"), "is a picture", _PROTEINS + "look at the file"),
    ((b"\x7fELF", b"MZ\x90"), "is a program", _PROTEINS + "look at the file"),
    ((b"SQLite format 3",), "is an SQLite database", _PROTEINS + "export the sequences"),
    ((b"BAM\x01", b"CRAM"), "is an alignment of reads", _READS),
    ((b"NCBI.sra",), "is an SRA file", _READS),
    ((b"HMMER",), "is a profile of HMMER", _PROTEINS + "give the sequences it was made of"),
    ((b"LOCUS ",), "is a GenBank file", _PROTEINS + "set input_type: genes (--input-type genes)"),
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
_PHYLIP = re.compile(rb"\s*\d+[ \t]+\d+[ \t]*(?:\n|$)")
_TABLE = re.compile(rb"[^\n,;\t]+(?:[,;\t][^\n,;\t]*){2,}\n|[^\n\t,;]+[\t,;][A-Za-z*]{20,}\n")


def foreign_error(content: bytes, *, path: str, line: int) -> InputError:
    """Say what a file is that does not begin with ">".

    Args:
        content: its first bytes, decompressed where it was compressed, white space left out.
        path: the file's name.
        line: where the content begins.

    Returns:
        The error, with a hint that fits the cause.
    """
    message, hint = _kind(content.removeprefix(b"\xef\xbb\xbf").lstrip(SPACE))
    return InputError(message, path=path, line=line, hint=hint)


def is_wide_text(content: bytes) -> bool:
    """Whether text that begins with ">" has two bytes or four a character."""
    return content[1:2] == content[3:4] == b"\0"


def _kind(content: bytes) -> tuple[str, str]:
    """Return what a file is, and a hint."""
    for magics, message, hint in _KINDS:
        if content.startswith(magics):
            return message, hint
    if _is_tar(content):
        return "is a tar archive", "unpack it (tar -xf FILE), and give the files in it"
    if content[:9].lower().startswith(_MARKUP):
        return "is a web page or XML", _DOWNLOAD
    if content.count(b"\0", 0, 64) or len(content[:64].translate(None, _CONTROLS)) < len(
        content[:64]
    ):
        return "is binary", "is it FASTA? It was not told what kind of file it is"
    if _PHYLIP.match(content):
        return (
            "is an alignment in PHYLIP format",
            "convert it, with Biopython's AlignIO for instance",
        )
    first, _, rest = content.decode("utf-8", "replace").partition("\n")
    if is_header(first, "") and rest[:1].isalpha():
        return f"has a first header without its '>': {first[:40]}", "put the '>' back"
    if _TABLE.match(content):
        return "looks like a table", _PROTEINS + "write each row as '>id', and its sequence below"
    return "has text before the first '>'", "is it FASTA? Its first line begins with '>'"


def _is_tar(content: bytes) -> bool:
    """Whether a header of tar has the sum of bytes that it names; the oldest have no other mark."""
    header = content[:512]
    digits = header[148:156].strip(b"\0 ")
    if len(header) < 512 or not digits or digits.translate(None, b"01234567"):
        return False
    return sum(header) - sum(header[148:156]) + 8 * ord(" ") == int(digits, 8)
