"""Real data. Nothing is kept in the project.

A file is read from the folder named by the environment variable CTLD_DATA_DIR, else from the user's cache, else it is
downloaded from its public source into that cache; its SHA-256 is checked in each case. scikit-learn's digits come with
scikit-learn and need no file.
"""

import gzip
import os
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
import pooch


class Split(NamedTuple):
    """Inputs, float32 in [0, 1], shape (examples, features), and labels, int32, shape (examples,)."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class Text(NamedTuple):
    """Characters (bytes of the file) as indices into `vocabulary`, uint8, in the order of the file, shape (characters,)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocabulary: bytes


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SOURCES = {
    "t10k-images-idx3-ubyte.gz": (
        _MNIST + "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        _MNIST + "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "tinyshakespeare.txt": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "warpeace_input.txt": (
        "https://cs.stanford.edu/people/karpathy/char-rnn/warpeace_input.txt",
        "cea8ccb6e581165e7b0988ab7e28cccc9447af1e0b1278ac8baeb8f359d9ce62",
    ),
    # The first 10^8 bytes of the English Wikipedia of 3 March 2006: the Hutter Prize file.
    "enwik8.zip": (
        "https://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    ),
}
# Data and reference draws of posteriordb, a JSON file in each archive.
_POSTERIORDB = (
    "https://raw.githubusercontent.com/stan-dev/posteriordb/28f8d3d6e975315f42aa274a8399f21e07a43b30/posterior_database/"
)
for _line in pathlib.Path(__file__).with_name("posteriordb.sha256").read_text().splitlines():
    _path, _sha256 = _line.split()
    _SOURCES[pathlib.Path(_path).name] = (_POSTERIORDB + _path, _sha256)
TEXTS = {"war_and_peace": "warpeace_input.txt", "shakespeare": "tinyshakespeare.txt", "wikipedia": "enwik8.zip"}


def fetch(name: str) -> pathlib.Path:
    """Path of a data file that is there and whose checksum is right.

    Raises:
      KeyError: for a name that is not known. ValueError: if a file in CTLD_DATA_DIR has another checksum.
      SystemExit: if the file is nowhere. The loaders serve commands, whose user needs one line and no traceback of the network.
    """
    url, sha256 = _SOURCES[name]
    folder = os.environ.get("CTLD_DATA_DIR")
    if folder and (path := pathlib.Path(folder) / name).is_file():
        found = pooch.file_hash(str(path), alg="sha256")
        if found != sha256:
            raise ValueError(
                f"{path} has SHA-256 {found}, expected {sha256}: it is damaged or another file. "
                "Replace it, or unset CTLD_DATA_DIR to download it."
            )
        return path
    try:
        return pathlib.Path(pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=pooch.os_cache("ctld_optax")))
    except (OSError, ValueError) as error:  # no connection, or what came has another checksum
        reason = type(error).__name__ if isinstance(error, OSError) else error
        raise SystemExit(
            f"{name} is not in CTLD_DATA_DIR ({folder or 'which is not set'}) and cannot be downloaded from {url} ({reason}): "
            "put it into a folder and set CTLD_DATA_DIR to that folder."
        ) from None


def digits(seed: int = 0, test_share: float = 0.2) -> Split:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, shuffled by `seed` and split."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import, and only digits needs it

    data, target = load_digits(return_X_y=True)
    x, y = np.asarray(data, np.float32) / 16.0, np.asarray(target, np.int32)
    return _split(x, y, seed, round(len(y) * test_share))


def mnist(seed: int = 0, num_test: int = 5_000) -> Split:
    """The 10,000 images of MNIST's official test set, 28x28 pixels, shuffled by `seed` and split."""
    x = _read_idx(fetch("t10k-images-idx3-ubyte.gz")).reshape(-1, 28 * 28).astype(np.float32) / 255.0
    y = _read_idx(fetch("t10k-labels-idx1-ubyte.gz")).astype(np.int32)
    return _split(x, y, seed, num_test)


def text(name: str) -> Text:
    """One of `TEXTS`: the first 90 % to train on, the next 5 % to validate on, the last 5 % to test on.

    Raises:
      KeyError: for a name that is not known. ValueError: as `fetch`; for a zip archive that holds not exactly one file.
    """
    return split_text(_read_text(fetch(TEXTS[name])))


def split_text(content: bytes) -> Text:
    """90/5/5, in order. The vocabulary is that of the whole file; one byte a character, also where UTF-8 needs several."""
    characters = np.frombuffer(content, np.uint8)
    vocabulary = np.flatnonzero(np.bincount(characters, minlength=256))
    index = np.zeros(256, np.uint8)
    index[vocabulary] = np.arange(len(vocabulary))
    train, validation, test = np.split(index[characters], [len(characters) * 90 // 100, len(characters) * 95 // 100])
    return Text(train, validation, test, bytes(vocabulary.tolist()))


def _read_text(path: pathlib.Path) -> bytes:
    return path.read_bytes() if path.suffix != ".zip" else read_only_member(path)


def read_only_member(path: pathlib.Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise ValueError(f"{path} must hold exactly one file, found {names}.")
        return archive.read(names[0])


def _split(x: np.ndarray, y: np.ndarray, seed: int, num_test: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = order[:num_test], order[num_test:]
    return Split(x[train], y[train], x[test], y[test])


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """An unsigned-byte array in the idx format: 0, 0, type, number of dimensions, sizes (big endian), data."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes: it starts with {content[:3]!r}.")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
