import hashlib
import io
import os
import random
import subprocess
import sys
import threading

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sequences.archives import ARCHIVES, COMPRESS
from virnucpro.errors import InputError
from virnucpro.sequences.compression import open_blocks

TEXT = b"".join(b">protein_%d\nMKV%sLLA\n" % (i, b"ACDEFGHIKL"[: i % 10]) for i in range(3000))


def content(path):
    return b"".join(open_blocks(path))


def written(tmp_path, data, name="proteins.fasta"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("data", [b"", b"x", TEXT], ids=["empty", "one byte", "text"])
def test_content_is_read_whatever_the_name_says(tmp_path, kind, data):
    assert content(written(tmp_path, COMPRESS[kind](data), "misleading.xz")) == data


@pytest.mark.fault(23)
@pytest.mark.parametrize("kind", ARCHIVES)
def test_all_members_of_an_archive_are_read(tmp_path, kind):
    parts = [TEXT[:100], b"", TEXT[100:5000], TEXT[5000:]]
    archive = b"".join(map(COMPRESS[kind], parts))
    assert content(written(tmp_path, archive)) == TEXT


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(ARCHIVES),
    parts=st.lists(st.binary(max_size=3000).map(lambda part: part * 7), min_size=1, max_size=12),
)
def test_members_may_end_anywhere_in_a_block(tmp_path_factory, kind, parts):
    path = written(tmp_path_factory.mktemp("members"), b"".join(map(COMPRESS[kind], parts)))
    assert content(path) == b"".join(parts)


@pytest.mark.fault(22)
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, kind):
    archive = COMPRESS[kind](TEXT)
    cuts = random.Random(7).sample(range(6, len(archive)), 40)
    for cut in [*cuts, 6, len(archive) - 1]:
        path = written(tmp_path, archive[:cut])
        with pytest.raises(InputError, match=f"the {kind} archive is truncated") as caught:
            content(path)
        assert caught.value.path == str(path)
        assert "copy or download it again" in caught.value.hint


@pytest.mark.fault(22, 23)
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_truncated_second_member_is_refused(tmp_path, kind):
    archive = COMPRESS[kind](TEXT)
    with pytest.raises(InputError, match=f"after 1 whole {kind} .*truncated"):
        content(written(tmp_path, archive + archive[:-3]))


@pytest.mark.fault(22)
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_flipped_bit_never_changes_the_content(tmp_path, kind):
    archive = bytearray(COMPRESS[kind](TEXT))
    refused = 0
    # From the seventh byte on: before it, the file is not recognised as an archive at all.
    for bit in random.Random(11).sample(range(6 * 8, len(archive) * 8), 120):
        archive[bit // 8] ^= 1 << bit % 8
        try:
            # Some bits carry nothing, such as the system's name in the head of a gzip file.
            assert content(written(tmp_path, bytes(archive))) == TEXT
        except InputError as error:
            assert "corrupt" in error.message or "truncated" in error.message  # noqa: PT017
            refused += 1
        archive[bit // 8] ^= 1 << bit % 8
    assert refused > 100


@pytest.mark.fault(23)
@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("garbage", [b"garbage after the end", b">p2\nMKV\n", b"\1\0\0\0\0"])
def test_garbage_after_the_end_is_refused(tmp_path, kind, garbage):
    path = written(tmp_path, COMPRESS[kind](TEXT) * 2 + garbage)
    with pytest.raises(InputError, match=f"after 2 whole {kind} member") as caught:
        content(path)
    assert caught.value.path == str(path)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["gzip", "xz"])
@pytest.mark.parametrize("zeros", [4, 512, 300_000])
def test_zero_padding_after_a_member_is_skipped(tmp_path, kind, zeros):
    archive = COMPRESS[kind](TEXT)
    path = written(tmp_path, archive + bytes(zeros) + archive + bytes(zeros))
    assert content(path) == TEXT * 2


def test_zstd_skippable_frames_are_skipped(tmp_path):
    skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello"
    archive = COMPRESS["zstd"](TEXT)
    assert content(written(tmp_path, skippable + archive + skippable + archive)) == TEXT * 2


def test_zstd_without_a_content_size_is_read_whole(tmp_path):
    stream = zstandard.ZstdCompressor().compressobj()
    assert content(written(tmp_path, stream.compress(TEXT) + stream.flush())) == TEXT


@pytest.mark.parametrize("kind", COMPRESS)
def test_digest_gets_the_raw_bytes(tmp_path, kind):
    raw = COMPRESS[kind](TEXT)
    digest = hashlib.sha256()
    for _ in open_blocks(written(tmp_path, raw), digest=digest):
        pass
    assert digest.hexdigest() == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("kind", COMPRESS)
def test_standard_input_is_read_like_a_file(monkeypatch, kind):
    raw = io.TextIOWrapper(io.BytesIO(COMPRESS[kind](TEXT)))
    monkeypatch.setattr(sys, "stdin", raw)
    assert content("-") == TEXT


def test_a_named_pipe_is_read_to_its_end(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write_in_bits():
        raw = COMPRESS["gzip"](TEXT)
        with pipe.open("wb", buffering=0) as handle:
            for start in range(0, len(raw), 501):
                handle.write(raw[start : start + 501])

    writer = threading.Thread(target=write_in_bits)
    writer.start()
    assert content(pipe) == TEXT
    writer.join()


@pytest.mark.parametrize("name", ["missing.fasta", "."])
def test_what_cannot_be_opened_is_named(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read") as caught:
        content(tmp_path / name)
    assert caught.value.path == str(tmp_path / name)


BOMB_BYTES = 1 << 28


def zstd_bomb():
    """128 KiB in every four bytes, with a window of 2 MiB."""
    block = (1 << 17) << 3 | 1 << 1  # size, and the type of a repeated byte
    blocks = [block.to_bytes(3, "little") + b"A"] * (BOMB_BYTES >> 17)
    blocks[-1] = (block | 1).to_bytes(3, "little") + b"A"
    return bytes.fromhex("28b52ffd0058") + b"".join(blocks)


def peak_memory_of_reading(path):
    """Bytes read, and the peak memory in bytes of a process that does nothing else."""
    script = (
        "import sys\n"
        "from virnucpro.sequences.compression import open_blocks\n"
        "print(sum(map(len, open_blocks(sys.argv[1]))))\n"
        "status = open('/proc/self/status').read()\n"
        "print(status.split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], check=True, capture_output=True, text=True
    )
    size, kibibytes = map(int, done.stdout.split())
    return size, kibibytes * 1024


@pytest.mark.fault(24)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_bomb_is_read_in_under_200_mb_of_memory(tmp_path, kind):
    bomb = zstd_bomb() if kind == "zstd" else COMPRESS[kind](b"A" * BOMB_BYTES)
    size, peak = peak_memory_of_reading(written(tmp_path, bomb))
    assert size == BOMB_BYTES
    assert peak < 200e6


@pytest.mark.fault(24)
def test_an_archive_that_needs_a_gigabyte_to_unpack_is_refused(tmp_path):
    frame = bytes.fromhex("28b52ffd00a0") + b"\x01\0\0"  # a window of 1 GiB, one empty block
    with pytest.raises(InputError, match="zstd archive is corrupt"):
        content(written(tmp_path, frame))
