"""What `leanmark fetch` brings here: data sets by name, or all that a suite needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from leanmark.declare import suite as suites
from leanmark.errors import InvalidInput, did_you_mean
from leanmark.planned import builtin_suites, find_suite, needs_of
from leanmark.progress import Advance
from leanmark.workloads import sources
from leanmark.workloads.data_sets import DATA_SETS
from leanmark.workloads.sources import Fetched


def fetch(names: Sequence[str], given: Path | None, advance: Advance) -> list[Fetched]:
    """Bring data sets here.

    names: of data sets, of built-in suites, or files of suites. given: a folder to look into first.

    Raises InvalidInput for an unknown name, and for a data set that cannot be had; those before it stay.
    """
    wanted = list(_wanted(names))
    found: list[Fetched] = []
    for index, name in enumerate(wanted):

        def tell(share: float, text: str, index: int = index) -> None:
            advance((index + share) / len(wanted), text)

        found.append(sources.fetch(name, given, tell))
    return found


def _wanted(names: Sequence[str]) -> Mapping[str, None]:
    wanted: dict[str, None] = {}
    for name in names:
        if name in DATA_SETS:
            wanted[name] = None
            continue
        path = Path(name)
        known = [*DATA_SETS, *(path.stem for path in builtin_suites())]
        if path.suffix not in (".yaml", ".yml") and name not in known:
            raise InvalidInput(f"'{name}' is no data set and no suite", do=did_you_mean(name, known))
        wanted |= dict.fromkeys(needs_of(suites.load(find_suite(name)).workloads))
    return wanted
