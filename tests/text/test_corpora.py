"""Corpora: texts by name and by file, downloads from a server on this machine, and no network."""

import hashlib
import http.server
import io
import os
import sys
import threading
import types
from pathlib import Path

import pytest

from fastlstm.text import ChecksumError, DownloadError, TextError, corpora, load_corpus

# --- files


def test_default_text_is_large_and_the_same_each_time():
    whole = load_corpus()
    assert len(whole) > 400_000
    assert whole == load_corpus(None)
    assert "\r" not in whole


def test_a_python_without_the_default_text_says_so(monkeypatch):
    small = types.ModuleType("pydoc_data.topics")
    small.topics = {"only": "a little"}
    for module, says in ((None, "lacks pydoc_data"), (small, "only 8 characters")):
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)
        with pytest.raises(TextError, match=f"{says}.* give a text file"):
            load_corpus()


@pytest.mark.parametrize("kind", [str, Path])
def test_files_are_read_as_text(tmp_path, kind):
    path = tmp_path / "naïve.txt"
    path.write_bytes("\ufeffnaïve\r\nline\rend\n".encode())
    assert load_corpus(kind(path)) == "naïve\nline\nend\n"


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO("über".encode())))
    assert load_corpus("-") == "über"
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(TextError, match="standard input: the text is empty"):
        load_corpus("-")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the text is empty"),
        (b"\xef\xbb\xbf", "the text is empty"),
        (b"ab\ncd\xe9f", r"not UTF-8 at byte 5 \(0xe9, in line 2\).*iconv -f LATIN1"),
        (b"\xef\xbb\xbfab\xff", r"at byte 5 \(0xff, in line 1\)"),
        ("text".encode("utf-16"), r"at byte 0 .*UTF-16"),
        (b"cut short \xe2\x98", "at byte 10"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, data, says):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(TextError, match=says) as caught:
        load_corpus(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file; .*shakespeare"):
        load_corpus(tmp_path / "none.txt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_corpus(tmp_path)


# --- downloads

POEM = ("Shall I compare thee to a summer's day?\n" * 50).encode()


class Site:
    """A web server on this machine: what it answers can be set, and it counts its visitors."""

    def __init__(self):
        site = self
        self.body, self.status, self.cut, self.visits = POEM, 200, 0, 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.visits += 1
                self.send_response(site.status)
                self.send_header("Content-Length", str(len(site.body)))
                self.end_headers()
                self.wfile.write(site.body[: len(site.body) - site.cut])

            def log_message(self, *args):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/input.txt"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site(monkeypatch, tmp_path):
    site = Site()
    sha256 = hashlib.sha256(POEM).hexdigest()
    corpus = corpora._Corpus(site.url, sha256, ("tinyshakespeare.txt", "input.txt"))
    monkeypatch.setitem(corpora._CORPORA, "shakespeare", corpus)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("FASTLSTM_DATA", raising=False)
    yield site
    site.close()


def cached(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_download_once_then_from_the_cache(site, tmp_path):
    assert load_corpus("shakespeare") == POEM.decode()
    assert cached(tmp_path) == [tmp_path / "cache" / "fastlstm" / "corpora" / "tinyshakespeare.txt"]
    assert cached(tmp_path)[0].read_bytes() == POEM
    assert load_corpus("shakespeare") == POEM.decode()
    assert site.visits == 1


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_cache_that_others_can_change_is_not_used(site, tmp_path):
    """Nothing is written through it either: where it leads is theirs to say."""
    load_corpus("shakespeare")
    (file,) = cached(tmp_path)
    file.parent.chmod(0o777)
    with pytest.warns(UserWarning, match=f"could not be written.*everybody may write to the folder {file.parent}"):
        assert load_corpus("shakespeare") == POEM.decode()
    assert site.visits == 2
    assert cached(tmp_path) == [file]


def test_a_damaged_cache_is_downloaded_anew(site, tmp_path):
    load_corpus("shakespeare")
    cached(tmp_path)[0].write_bytes(POEM[:-1])
    assert load_corpus("shakespeare") == POEM.decode()
    assert cached(tmp_path)[0].read_bytes() == POEM
    assert site.visits == 2


def test_a_download_cut_short_leaves_nothing(site, tmp_path):
    site.cut = 100
    with pytest.raises(DownloadError, match="could not be downloaded"):
        load_corpus("shakespeare")
    assert cached(tmp_path) == []


def test_a_wrong_download_is_refused_and_leaves_nothing(site, tmp_path):
    site.body = b"<html>please log in</html>"
    with pytest.raises(ChecksumError, match=r"what came from http.*not the expected text.*\(26 bytes\)"):
        load_corpus("shakespeare")
    assert cached(tmp_path) == []


def test_offline_says_what_to_do(site, monkeypatch, tmp_path):
    site.status = 503
    with pytest.raises(DownloadError) as caught:
        load_corpus("shakespeare")
    for part in (site.url, "503", "tinyshakespeare.txt", "FASTLSTM_DATA", "give none to use"):
        assert part in str(caught.value)
    monkeypatch.setenv("FASTLSTM_DATA", str(tmp_path / "empty"))
    with pytest.raises(DownloadError, match=r"holds neither tinyshakespeare\.txt nor input\.txt"):
        load_corpus("shakespeare")


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "input.txt"])
def test_a_local_copy_needs_no_network(site, monkeypatch, tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(POEM)
    monkeypatch.setenv("FASTLSTM_DATA", str(tmp_path / "data"))
    assert load_corpus("shakespeare") == POEM.decode()
    assert site.visits == 0
    (tmp_path / "data" / name).write_bytes(POEM + b"!")
    with pytest.raises(ChecksumError, match=rf"{name}: not the expected text.*unset FASTLSTM_DATA"):
        load_corpus("shakespeare")
    assert site.visits == 0


def test_a_cache_that_cannot_be_written_is_only_a_warning(site, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be written"):
        assert load_corpus("shakespeare") == POEM.decode()
