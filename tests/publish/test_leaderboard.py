"""The ranking: order, Pareto fronts, the best variant."""

import shlex
from dataclasses import replace

import runs
from hypothesis import given
from hypothesis import strategies as st

from leanmark.publish import leaderboard
from leanmark.publish.leaderboard import AXES, Row
from leanmark.results import Footprint, Interval, Quality, Result, Role, Run, Status, Target

LATENCY = AXES[0].value
SIZE = AXES[1].value


def table(run: Run | None = None) -> list[Row]:
    return leaderboard.rows(run or runs.realistic_run())


def first_group(run: Run | None = None) -> list[Row]:
    return next(iter(leaderboard.groups(table(run)).values()))


def named(members: list[Row], name: str) -> Row:
    return next(row for row in members if row.variant == name)


def change(run: Run, recipe: str, **fields: object) -> Run:
    """The run with other fields in the results of one recipe."""
    return replace(run, results=tuple(replace(r, **fields) if r.cell.recipe == recipe else r for r in run.results))


def test_references_come_first_then_controls_then_variants_by_latency():
    members = first_group()
    roles = [row.role for row in members]
    assert roles[:4] == [Role.REFERENCE, Role.EAGER, Role.CONTROL, Role.CONTROL]
    assert set(roles[4:]) == {Role.VARIANT}
    measured = [row for row in members[4:] if row.status in (Status.OK, Status.NOISY)]
    ratios = [row.latency.value for row in measured if row.latency is not None]
    assert ratios == sorted(ratios)
    assert members[4 : 4 + len(measured)] == measured  # wrong, ineffective and unmeasured ones come after


def test_a_cached_answer_does_not_lead_the_table():
    fast = Interval(0.001, 0.0009, 0.0011, 0.95, 5, "test")
    members = first_group(change(runs.realistic_run(), "fake-int8", against_reference=fast))
    assert next(row.variant for row in members if row.role is Role.VARIANT) == "channels-int8"
    assert leaderboard.best(members) is not named(members, "fake-int8")
    assert named(members, "fake-int8").id not in leaderboard.pareto(members, LATENCY)


def test_every_cell_is_a_row_and_groups_keep_the_runs_order():
    run = runs.realistic_run()
    assert {row.id for row in table(run)} == {result.cell.id for result in run.results}
    groups = list(leaderboard.groups(table(run)))
    assert [group.workload for group in groups] == ["lenet-300-100", "lenet-5"]
    assert groups[0].place == "cpu, onnxruntime, 1 thread, batch 1"


def test_a_groups_target_is_the_variants_not_the_eager_references():
    run = runs.realistic_run()
    backwards = replace(run, results=tuple(reversed(run.results)))
    by_eager = sorted(backwards.results, key=lambda result: result.cell.role is not Role.EAGER)
    for group in leaderboard.groups(table(replace(run, results=tuple(by_eager)))):
        assert group.target == Target()


def test_the_ratio_to_eager_never_stands_alone():
    run = change(runs.realistic_run(), "int8-static", against_reference=None)
    row = named(first_group(run), "int8-static")
    assert row.result.against_eager is not None
    assert row.eager is None


def test_the_reference_is_one_by_definition_once_it_was_timed():
    members = first_group()
    assert named(members, "fp32").latency == Interval(1.0, 1.0, 1.0, 1.0, 0, "by definition")
    untimed = change(runs.realistic_run(), "fp32", timing=None)
    assert named(first_group(untimed), "fp32").latency is None


def point(index: int, size: int, score: float, status: Status, role: Role, block: str) -> Result:
    """A cell of which only size and quality are known."""
    cell = replace(runs.realistic_run().results[0].cell, id=f"{block}/{index}", role=role, block=block)
    quality = Quality("accuracy", Interval(score, score, score, 0.95, 100, "test"), (score,))
    return Result(cell, status, quality=quality, footprint=Footprint(1, 1, 1, size, size))


POINTS = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]),
        st.sampled_from([Status.OK, Status.OK, Status.OK, Status.NOISY, Status.WRONG]),
        st.sampled_from([Role.VARIANT, Role.VARIANT, Role.REFERENCE, Role.CONTROL, Role.EAGER]),
        st.sampled_from(["one", "two"]),
    ),
    max_size=12,
)


@given(POINTS)
def test_the_front_is_what_no_competitor_of_the_same_group_beats(points: list[tuple[int, float, Status, Role, str]]):
    found = [point(index, *values) for index, values in enumerate(points)]
    members = leaderboard.rows(replace(runs.empty_run(), results=tuple(found)))

    def beats(one: Row, other: Row) -> bool:
        (a, b), (c, d) = ((SIZE(row) or 0, row.score or 0) for row in (one, other))
        return one.group == other.group and a <= c and b >= d and (a < c or b > d)

    able = [row for row in members if row.ok and row.role in (Role.VARIANT, Role.REFERENCE)]
    expected = {row.id for row in able if not any(beats(other, row) for other in able)}
    assert leaderboard.pareto(members, SIZE) == expected


def test_the_best_variant_is_the_fastest_that_surely_keeps_its_quality():
    members = first_group()
    found = leaderboard.best(members)
    # channels-int8 and distilled are faster, but may lose more than one point.
    assert found is not None
    assert found.variant == "int8-static"
    lossy = leaderboard.best(members, margin=0.05)
    assert lossy is not None
    assert lossy.variant == "channels-int8"


def test_nothing_is_best_where_nothing_is_surely_faster():
    run = runs.only(runs.realistic_run(), "fp32", "fp32-eager", "same", "slower-3", "half", "pruned-0.5", "tucker")
    assert leaderboard.best(first_group(run)) is None
    maybe = Interval(0.9, 0.7, 1.1, 0.95, 5, "test")
    unsure = change(runs.only(runs.realistic_run(), "fp32", "svd"), "svd", against_reference=maybe)
    assert leaderboard.best(first_group(unsure)) is None


def test_sensitivity_is_over_what_was_measured():
    seen = leaderboard.sensitivity(table())
    assert seen is not None
    assert 0 < seen.smallest <= seen.median <= seen.largest < 0.03
    assert (seen.launches, seen.level) == (5, 0.95)
    assert leaderboard.sensitivity(table(runs.only(runs.realistic_run(), "fp32", "tucker"))) is None


def test_statuses_are_counted_ok_first():
    counted = leaderboard.statuses(table())
    assert next(iter(counted)) is Status.OK
    assert sum(counted.values()) == len(table())
    assert counted[Status.FAILED] == 2


def test_the_command_measures_that_cell_alone():
    run = runs.realistic_run()
    row = named(first_group(run), "svd")
    wanted = "leanmark run quick --only lenet-300-100/svd/cpu-onnxruntime-t1-b1"
    assert leaderboard.reproduce(run, row) == wanted
    for command in ("leanmark run quick --only svd --resume=x", "leanmark run quick --resume latest --only=int8"):
        assert leaderboard.reproduce(replace(run, command=command), row) == wanted


def test_a_hostile_cell_id_stays_one_word_of_the_command():
    run = runs.hostile_run()
    for row in table(run)[:2]:
        assert shlex.split(leaderboard.reproduce(run, row))[-1] == row.id


def test_a_run_without_facts_still_has_a_machine_line():
    run = replace(runs.realistic_run(), environment={}, commit={"id": "unversioned"})
    assert leaderboard.machine(run.environment) == "an unknown machine"
    assert leaderboard.versions(run.environment) == {}
    assert leaderboard.commit(run) == ""
    assert leaderboard.machine(runs.realistic_run().environment).startswith(
        "AMD EPYC 9R14 96-Core Processor, 2 cores, Debian"
    )
