"""Downloads from a real server on this machine, which breaks off as it is told to."""

import functools
import http.client
import http.server
import random
import threading
import urllib.error

import pytest

from virnucpro.errors import DataError, InputError
from virnucpro.model import download as module
from virnucpro.model.download import download

CONTENT = random.Random(0).randbytes(3_000_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `breaks` are the bytes after which each next answer breaks off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.ranges = CONTENT, '"v1"', True
        self.breaks, self.codes, self.asked = [], [], []
        self.length = str  # what is said of a body's length; None for nothing

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/model.pt"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, begin = self.server, 0
        server.asked.append(self.headers.get("Range"))
        if server.codes and (code := server.codes.pop(0)):
            return self.send_error(code)
        same = self.headers.get("If-Range", server.tag) == server.tag
        if self.headers.get("Range") and server.ranges and same:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        body = server.content[begin:]
        if self.server.length is not None:
            self.send_header("Content-Length", self.server.length(len(body)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        limit = server.breaks.pop(0) if server.breaks else len(body)
        self.wfile.write(body[:limit])
        return None


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "_WAITS", (0.0, 0.0, 0.0))


def accept(_path):
    return None


def test_file_comes_whole_and_leaves_nothing_beside_it(server, tmp_path):
    target = tmp_path / "deep" / "model.pt"
    seen = []
    download(server.address, target, lambda path: seen.append(path.read_bytes()))
    assert target.read_bytes() == CONTENT
    assert seen == [CONTENT]
    assert list(target.parent.iterdir()) == [target]


def test_file_that_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"mine")
    download(server.address, tmp_path / "model.pt", accept)
    assert server.asked == []
    assert (tmp_path / "model.pt").read_bytes() == b"mine"


def test_broken_connection_goes_on_where_it_broke_off(server, tmp_path):
    server.breaks = [1_000_000, 0, 500_000]
    download(server.address, tmp_path / "model.pt", accept)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT
    assert server.asked == [None, None, "bytes=1000000-", None, "bytes=1500000-"]


def test_next_call_goes_on_where_the_last_one_ended(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAITS", ())
    server.breaks = [1_000_000]
    with pytest.raises(http.client.IncompleteRead):
        download(server.address, tmp_path / "model.pt", accept)
    (part,) = tmp_path.iterdir()
    assert part.stat().st_size == 1_000_000
    download(server.address, tmp_path / "model.pt", accept)
    assert server.asked[-1] == "bytes=1000000-"
    assert (tmp_path / "model.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("changed", ["other_version", "no_ranges"])
def test_parts_of_two_versions_are_never_joined(server, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(module, "_WAITS", ())
    server.breaks = [1_000_000]
    with pytest.raises(http.client.IncompleteRead):
        download(server.address, tmp_path / "model.pt", accept)
    if changed == "other_version":
        server.content, server.tag = CONTENT[::-1], '"v2"'
    else:
        server.ranges = False
    download(server.address, tmp_path / "model.pt", accept)
    assert (tmp_path / "model.pt").read_bytes() == server.content


def test_unusable_download_is_thrown_away(server, tmp_path):
    def refuse(_path):
        raise InputError("is not a model")

    with pytest.raises(InputError):
        download(server.address, tmp_path / "model.pt", refuse)
    assert list(tmp_path.iterdir()) == []


def test_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    server.codes = [503, 429]
    download(server.address, tmp_path / "model.pt", accept)
    assert len(server.asked) == 3
    server.codes = [404]
    with pytest.raises(urllib.error.HTTPError):
        download(server.address, tmp_path / "other.pt", accept)
    assert len(server.asked) == 4


def test_silent_server_ends_the_wait(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(module, "_STALLED_SECONDS", 0.2)
    monkeypatch.setattr(module, "_WAITS", ())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/model.pt"
        with pytest.raises(TimeoutError):
            download(address, tmp_path / "model.pt", accept)


def test_full_disk_is_found_before_the_download(server, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _folder: Usage)
    with pytest.raises(DataError, match="3,000,000 bytes are needed, 1,000 are free"):
        download(server.address, tmp_path / "model.pt", accept)


def test_two_at_once_give_one_whole_file(server, tmp_path):
    errors = []

    def fetch():
        try:
            download(server.address, tmp_path / "model.pt", accept)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "model.pt").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_part_that_was_opened_after_the_other_was_done_does_not_stay(
    server, tmp_path, monkeypatch
):
    def wait(_handle, _operation):
        (tmp_path / "model.pt").write_bytes(CONTENT)  # the other process ends meanwhile

    monkeypatch.setattr(module.fcntl, "flock", wait)
    download(server.address, tmp_path / "model.pt", accept)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_part_that_the_other_threw_away_is_not_gone_on_with(server, tmp_path, monkeypatch):
    def throw_away(replace):
        (part,) = tmp_path.glob(".*.part")
        part.unlink()
        if replace:
            part.write_bytes(b"of a third process")

    # While this process waits: another file under the name, then none, then nothing happens.
    happens = iter([lambda: throw_away(True), lambda: throw_away(False), lambda: None])

    def wait(_handle, _operation):
        next(happens)()

    monkeypatch.setattr(module.fcntl, "flock", wait)
    download(server.address, tmp_path / "model.pt", accept)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT


def test_download_says_how_far_it_is(server, tmp_path, caplog):
    caplog.set_level("INFO")
    download(server.address, tmp_path / "model.pt", accept)
    assert "3,000,000 bytes in" in caplog.text


@pytest.mark.parametrize("length", [None, lambda _size: "unknown", lambda _size: "-1"])
def test_size_that_the_server_does_not_tell_is_not_invented(
    server, tmp_path, monkeypatch, caplog, length
):
    every_line = functools.partial(module.Progress, interval=0.0)
    monkeypatch.setattr(module, "Progress", every_line)
    caplog.set_level("INFO")
    server.length = length
    download(server.address, tmp_path / "model.pt", accept)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("1,048,576 bytes, ") for line in lines), lines
    assert lines[-1] == "3,000,000 bytes received; the server did not say how many there are"
    assert "%" not in caplog.text
    assert "left" not in caplog.text
