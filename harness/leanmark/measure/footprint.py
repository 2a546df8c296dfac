"""What an artifact weighs: its files, plain and compressed, and the counts of its structure."""

from __future__ import annotations

from collections.abc import Mapping

from leanmark.results import Footprint
from leanmark.stages import Artifact

ZSTD_LEVEL = 19


def weigh(artifact: Artifact, counts: Mapping[str, int | None]) -> Footprint:
    """Size of every file of the artifact, and zstd level 19 of each of them."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    contents = [path.read_bytes() for path in artifact.files()]
    notes = {} if counts.get("macs") is not None else {"macs": "counted on torch structures only"}
    return Footprint(
        parameters=counts.get("parameters"),
        nonzero_parameters=counts.get("nonzero_parameters"),
        macs=counts.get("macs"),
        size_bytes=sum(map(len, contents)),
        compressed_bytes=sum(len(compressor.compress(content)) for content in contents),
        notes=notes,
    )
