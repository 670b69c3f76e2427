"""Data that is nowhere: not in CTLD_DATA_DIR, not in the cache, not on the network. One line says so, and what to do."""

import functools
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from benchmarks import char_rnn, plateau_tuned, sda
from benchmarks.harness import data

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "posterior_ensembles.py"
IMAGES = "t10k-images-idx3-ubyte.gz"


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty CTLD_DATA_DIR, an empty cache, and a proxy that refuses every connection."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("CTLD_DATA_DIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return folder


@pytest.mark.parametrize(
    ("command", "arguments", "file"),
    [(sda, [], IMAGES), (plateau_tuned, ["--full"], IMAGES), (char_rnn, ["--text", "shakespeare"], "tinyshakespeare.txt")],
)
def test_a_command_ends_with_one_line(command, arguments, file, nowhere):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    message = str(ended.value)
    assert "\n" not in message
    assert message.startswith(f"{file} is not in CTLD_DATA_DIR ({nowhere})")
    assert "ProxyError" in message  # the reason


def test_the_shell_sees_no_traceback(monkeypatch):
    monkeypatch.delenv("CTLD_DATA_DIR")
    command = [sys.executable, "-m", "benchmarks.char_rnn"]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    *before, last = ended.stderr.splitlines()
    assert last.startswith("warpeace_input.txt is not in CTLD_DATA_DIR (which is not set)")
    assert len(before) <= 1  # pooch names its source


def test_a_download_that_is_another_file_is_named(tmp_path, monkeypatch):
    (tmp_path / IMAGES).write_bytes(b"<html>Please log in to this network.</html>")
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source = f"http://127.0.0.1:{server.server_port}/{IMAGES}"
    monkeypatch.setitem(data._SOURCES, IMAGES, (source, data._SOURCES[IMAGES][1]))
    try:
        with pytest.raises(SystemExit, match=r"CTLD_DATA_DIR .* does not match the known hash"):
            data.fetch(IMAGES)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [("unset", "ProxyError"), (None, "FileNotFoundError"), (b"\x1f\x8b\x08\x00", "EOFError"), (b"no gzip", "BadGzipFile")],
)
def test_the_notebook_says_so_and_goes_on_with_other_digits(content, reason, nowhere, monkeypatch, capsys):
    if content == "unset":
        monkeypatch.delenv("CTLD_DATA_DIR")
    elif content is not None:
        (nowhere / IMAGES).write_bytes(content)
        (nowhere / IMAGES.replace("images-idx3", "labels-idx1")).write_bytes(content)
    source, call = NOTEBOOK.read_text(), "x, y, name = load()\n"
    end = source.index(call) + len(call)
    found = {}
    exec(compile(source[:end], str(NOTEBOOK), "exec"), found)  # noqa: S102 - our own text
    said = capsys.readouterr().out.splitlines()
    assert said == [f"No MNIST in CTLD_DATA_DIR or from the network ({reason}): scikit-learn's digits take its place."]
    assert found["name"] == "scikit-learn's digits"
    assert found["x"].shape == (1797, 64)
