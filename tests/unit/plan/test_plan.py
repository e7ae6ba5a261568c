"""Plans: what is in them, their file, and that a damaged or foreign one is never used."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.errors import DataError, InputError
from virnucpro.formats import PLAN_FORMAT
from virnucpro.plan.items import increasing, key_array
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import check_plan_fits, make_plan, read_plan, replan, write_plan
from virnucpro.plan.table import content_hash, parse_plan


def keys_for(number):
    return [f"{7 * row:032x}" for row in range(number)]


def plan_for(lengths, **options):
    options = {"token_budget": 64, "max_sequence_length": 50, **options}
    return make_plan(keys_for(len(lengths)), np.array(lengths, np.int64), PlanParameters(**options))


LENGTHS = [60, 10, 50, 1, 12, 12, 30, 120]

lengths_lists = st.lists(st.integers(1, 130), max_size=60)
policies = st.sampled_from(["truncate", "window"])


def in_order(plan, row):
    """The items of a sequence: its places in the plan, by their starts."""
    of_row = np.flatnonzero(plan.row == row)
    return of_row[np.argsort(plan.start[of_row])]


@given(lengths_lists)
def test_truncation_keeps_the_first_residues(lengths):
    plan = plan_for(lengths)
    assert sorted(plan.row.tolist()) == list(range(len(lengths)))
    assert not plan.start.any()
    cut = np.array(lengths, np.int64)[plan.row]
    assert plan.end.tolist() == np.minimum(cut, 50).tolist()
    assert plan.truncated.tolist() == (cut > 50).tolist()
    assert (plan.keys == key_array(keys_for(len(lengths)))[plan.row]).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 400), max_size=20), st.integers(0, 49))
def test_windows_are_few_overlap_enough_and_lie_evenly(lengths, overlap):
    plan = plan_for(lengths, long_sequences="window", window_overlap=overlap)
    assert not plan.truncated.any()
    for row, length in enumerate(lengths):
        items = in_order(plan, row)
        starts, ends = plan.start[items], plan.end[items]
        assert (plan.windows[items] == len(items)).all()
        assert (starts[0], ends[-1]) == (0, length)
        assert (ends - starts == min(length, 50)).all()
        if len(items) > 1:
            shared = ends[:-1] - starts[1:]
            assert shared.min() >= overlap
            assert shared.max() - shared.min() <= 1
            one_less = len(items) - 1
            assert one_less * 50 - (one_less - 1) * overlap < length
        assert (plan.keys[items] == key_array(keys_for(len(lengths)))[row]).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=12), st.integers(0, 49))
def test_each_residue_is_taken_from_the_window_where_it_is_farthest_from_an_edge(lengths, overlap):
    plan = plan_for(lengths, long_sequences="window", window_overlap=overlap)
    first, end = plan.owned_spans
    for row, length in enumerate(lengths):
        items = in_order(plan, row)
        taken = [
            (residue, item) for item in items.tolist() for residue in range(first[item], end[item])
        ]
        expected = [
            # An edge of the sequence is none; of equal ones the first, as max does.
            (residue, max(items.tolist(), key=lambda item: depth(plan, item, residue, length)))
            for residue in range(length)
        ]
        assert taken == expected
    assert plan.residue_offsets.tolist() == np.cumsum([0, *lengths]).tolist()


def depth(plan, item, residue, length):
    """How far a residue stands from the nearer edge of a window; -1 outside it."""
    start, end = int(plan.start[item]), int(plan.end[item])
    if not start <= residue < end:
        return -1
    left = residue - start if start else length
    right = end - 1 - residue if end < length else length
    return min(left, right)


def test_residues_that_were_cut_off_have_no_place():
    plan = plan_for([60, 10, 50])
    assert plan.residue_offsets.tolist() == [0, 50, 60, 110]
    assert plan_for([]).residue_offsets.tolist() == [0]


@settings(deadline=None)
@given(lengths_lists, policies)
def test_batches_are_numbered_in_order_within_the_budget_and_longest_first(lengths, policy):
    plan = plan_for(lengths, long_sequences=policy)
    assert plan.batches == len(set(plan.batch.tolist()))
    for number, (first, end) in enumerate(pairwise(plan.batch_offsets.tolist())):
        assert set(plan.batch[first:end].tolist()) == {number}
        tokens = plan.tokens[first:end].tolist()
        assert sum(tokens) <= 64
        assert tokens == sorted(tokens, reverse=True)


def test_ties_go_by_key_then_by_start():
    plan = plan_for([100, 50, 100], long_sequences="window", token_budget=1000)
    assert list(zip(plan.row.tolist(), plan.start.tolist(), strict=True)) == [
        (0, 0),
        (0, 50),
        (1, 0),
        (2, 0),
        (2, 50),
    ]


@settings(deadline=None)
@given(lengths_lists, st.integers(52, 300))
def test_a_plan_made_again_at_another_budget_is_the_plan_of_that_budget(lengths, budget):
    again = replan(plan_for(lengths), budget)
    direct = plan_for(lengths, token_budget=budget)
    assert again.content_hash == direct.content_hash
    assert again.batch.tolist() == direct.batch.tolist()


def test_planning_again_may_go_below_the_maximum_length_where_no_item_is_that_long():
    assert replan(plan_for([5, 8]), 10).batches == 2
    with pytest.raises(InputError, match="item of 10 tokens, more than the token budget of 9"):
        replan(plan_for([5, 8]), 9)


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 51}, "a token budget of 51 cannot hold"),
        ({"token_budget": 1 << 80, "max_sequence_length": 1 << 70}, "not at most 2147483647"),
        ({"max_sequence_length": 0}, "maximum sequence length is 0"),
        ({"long_sequences": "drop"}, "'drop', expected truncate or window"),
        ({"long_sequences": "window", "window_overlap": 50}, "50 residues cannot overlap by 50"),
    ],
)
def test_parameters_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        plan_for([1], **options)


@pytest.mark.parametrize(
    ("keys", "lengths", "message"),
    [
        (keys_for(2)[::-1], [1, 1], "sorted and distinct"),
        (keys_for(1) * 2, [1, 1], "sorted and distinct"),
        (keys_for(2), [1], "2 keys, but 1 lengths"),
        (keys_for(2), [1, 0], "sequence 1 is empty"),
        (["00" * 15, "00" * 17], [1, 1], "32 hexadecimal digits"),
        (np.zeros((2, 8), np.uint8), [1, 1], "expected uint8"),
    ],
)
def test_keys_and_lengths_that_are_no_shard_are_refused(keys, lengths, message):
    with pytest.raises(ValueError, match=message):
        make_plan(keys, np.array(lengths), PlanParameters(64, 50))


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=6))
def test_keys_are_compared_as_bytes(keys):
    array = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
    assert increasing(array) == all(a < b for a, b in pairwise(keys))


class TestFile:
    @pytest.mark.parametrize("lengths", [LENGTHS, []])
    def test_what_is_read_is_what_was_written(self, tmp_path, lengths):
        plan = plan_for(lengths)
        write_plan(plan, tmp_path / "p.parquet")
        read = read_plan(tmp_path / "p.parquet")
        assert read.parameters == plan.parameters
        assert read.content_hash == plan.content_hash
        for name in ("batch", "row", "start", "end", "truncated", "keys", "tokens"):
            written, found = getattr(plan, name), getattr(read, name)
            assert found.dtype == written.dtype
            assert np.array_equal(found, written)

    def test_keys_that_end_in_zero_bytes_survive(self, tmp_path):
        keys = ["00" * 16, "01" + "00" * 15]
        plan = make_plan(keys, np.array([1, 1]), PlanParameters(64, 50))
        write_plan(plan, tmp_path / "p.parquet")
        assert [key.tobytes().hex() for key in read_plan(tmp_path / "p.parquet").keys] == keys

    def test_equal_plans_give_equal_bytes(self, tmp_path):
        for name in "ab":
            write_plan(plan_for(LENGTHS), tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_columns_and_metadata_are_the_documented_ones(self, tmp_path):
        write_plan(plan_for(LENGTHS), tmp_path / "p.parquet")
        schema = pq.read_schema(tmp_path / "p.parquet")
        assert [(field.name, str(field.type)) for field in schema] == [
            ("batch", "int32"),
            ("row", "int32"),
            ("key", "fixed_size_binary[16]"),
            ("start", "int32"),
            ("end", "int32"),
            ("tokens", "int32"),
            ("truncated", "bool"),
        ]
        assert json.loads(schema.metadata[b"virnucpro"]) == {
            "format": PLAN_FORMAT,
            "token_budget": 64,
            "max_sequence_length": 50,
            "long_sequences": "truncate",
            "window_overlap": 0,
            "algorithm": "first-fit-decreasing",
            "content_hash": plan_for(LENGTHS).content_hash,
        }

    @pytest.mark.parametrize(
        "options",
        [{"token_budget": 65}, {"max_sequence_length": 49}, {"window_overlap": 8}],
    )
    def test_the_content_hash_depends_on_each_parameter(self, options):
        # No sequence is long enough for the parameter to change a batch.
        options = {"long_sequences": "window", "window_overlap": 7, **options}
        hashes = [plan_for([5, 6]).content_hash]
        hashes += [plan_for([5, 6], long_sequences="window", window_overlap=7).content_hash]
        hashes += [plan_for([5, 6], **options).content_hash]
        assert len(set(hashes)) == 3
        assert hashes[0] == plan_for([5, 6], window_overlap=7).content_hash

    def test_the_content_hash_is_pinned(self):
        # Another hash for the same plan makes every cache and receipt useless: raise PLAN_FORMAT.
        assert plan_for(LENGTHS).content_hash == "9102e71ec68b73da656defa3c9e3f970"


class TestDamage:
    """A plan that was damaged or changed, with or without a hash made again, is refused."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "plan.parquet"
        write_plan(plan_for(LENGTHS), path)
        return path

    def edit(self, path, change, *, rehash=True):
        """Change the columns in a file, and make its hash fit again."""
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[b"virnucpro"])
        columns = {name: table[name].to_pylist() for name in table.column_names}
        change(columns, metadata)
        if rehash:
            arrays = [
                np.array(columns[name], np.int32) for name in ("batch", "row", "start", "end")
            ]
            arrays.append(np.array(columns["truncated"]))
            arrays.append(np.frombuffer(b"".join(columns["key"]), np.uint8).reshape(-1, 16))
            names = [field.name for field in dataclasses.fields(PlanParameters)]
            parameters = PlanParameters(**{name: metadata.get(name, "") for name in names})
            metadata["content_hash"] = content_hash(parameters, arrays)
        schema = table.schema.with_metadata({b"virnucpro": json.dumps(metadata)})
        pq.write_table(pa.table(columns, schema=schema), path)

    def test_an_edit_that_changes_nothing_is_read(self, path):
        self.edit(path, lambda columns, metadata: None)
        assert read_plan(path).items == len(LENGTHS)

    @pytest.mark.fault(11)
    @pytest.mark.parametrize("column", ["batch", "row", "start", "end"])
    def test_a_changed_cell_does_not_fit_the_hash(self, path, column):
        def change(columns, metadata):
            columns[column][3] += 1

        self.edit(path, change, rehash=False)
        with pytest.raises(DataError, match=r"plan.parquet: the plan is damaged: its content hash"):
            read_plan(path)

    @pytest.mark.fault(11)
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c, m: c["batch"].__setitem__(0, 1), "not numbered"),
            (lambda c, m: c["batch"].__setitem__(-1, c["batch"][-1] + 2), "not numbered"),
            (lambda c, m: c["batch"].__setitem__(slice(None), [-1] + [0] * 7), "not numbered"),
            (lambda c, m: c["batch"].__setitem__(slice(None), [0] * 8), "more than 64 tokens"),
            (lambda c, m: c["tokens"].__setitem__(0, 3), "tokens are not its residues"),
            (lambda c, m: c["row"].__setitem__(0, -1), "a row or a start is negative"),
            (lambda c, m: m.update(max_sequence_length=49), "1 to 49 residues"),
            (lambda c, m: m.update(token_budget=51), "more than 51 tokens"),
        ],
    )
    def test_an_edit_with_a_hash_made_again_is_found_by_its_sense(self, path, change, message):
        self.edit(path, change)
        with pytest.raises(DataError, match=message):
            read_plan(path)

    def test_an_empty_item_is_found(self, path):
        def change(columns, metadata):
            columns["start"][0], columns["tokens"][0] = columns["end"][0], 2

        self.edit(path, change)
        with pytest.raises(DataError, match="1 to 50 residues"):
            read_plan(path)

    @pytest.mark.fault(12)
    def test_another_format_is_a_clear_version_error(self, path):
        self.edit(path, lambda columns, metadata: metadata.update(format=0))
        with pytest.raises(InputError, match=r"plan.parquet: plan has format 0"):
            read_plan(path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda c, m: m.pop("algorithm"),
            lambda c, m: m.pop("format"),
            lambda c, m: m.update(token_budget="64"),  # noqa: S106 - a number as a string
            lambda c, m: m.update(more=1),
        ],
    )
    def test_other_metadata_are_refused(self, path, change):
        self.edit(path, change)
        with pytest.raises(DataError, match="does not say how it was planned"):
            read_plan(path)

    def test_another_table_is_refused(self, path):
        pq.write_table(pa.table({"a": [1]}), path)
        with pytest.raises(DataError, match="does not say how it was planned"):
            read_plan(path)

    def test_a_column_of_another_type_is_refused(self, path):
        table = pq.read_table(path)
        column = table["row"].cast(pa.int64())
        pq.write_table(table.set_column(1, pa.field("row", pa.int64(), False), column), path)
        with pytest.raises(DataError, match="does not have a plan's columns"):
            read_plan(path)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"no.parquet: the plan is missing"):
            read_plan(tmp_path / "no.parquet")

    @pytest.mark.fault(11)
    def test_a_file_cut_anywhere_is_refused(self, path):
        content = path.read_bytes()
        for size in range(0, len(content), 97):
            with pytest.raises(DataError):
                parse_plan(content[:size], path)

    @pytest.mark.fault(11)
    def test_a_flipped_bit_anywhere_is_refused_or_harmless(self, path):
        content = path.read_bytes()
        expected = read_plan(path).content_hash
        refused = 0
        for position in range(0, len(content), 5):
            flipped = bytearray(content)
            flipped[position] ^= 1 << (position % 8)
            try:
                assert parse_plan(bytes(flipped), path).content_hash == expected
            except (DataError, InputError):
                refused += 1
        assert refused > len(content) // 5 // 4


class TestFits:
    def fit(self, plan, number=8, lengths=LENGTHS):
        check_plan_fits(plan, key_array(keys_for(number)), np.array(lengths))

    def test_the_plans_own_shard_fits(self):
        self.fit(plan_for(LENGTHS))
        self.fit(plan_for([]), 0, [])

    def test_other_sequences_do_not_fit(self):
        plan = plan_for(LENGTHS)
        keys = key_array(keys_for(8)).copy()
        keys[5, 3] ^= 1
        for shard in (
            (keys, np.array(LENGTHS)),
            (key_array(keys_for(7)), np.array(LENGTHS[:7])),
            (key_array(keys_for(9)), np.array([*LENGTHS, 4])),
            (key_array([]), np.array([])),
        ):
            with pytest.raises(DataError, match="another shard"):
                check_plan_fits(plan, *shard)

    def test_an_item_past_the_end_of_its_sequence_does_not_fit(self):
        with pytest.raises(DataError, match="another shard"):
            self.fit(plan_for(LENGTHS), lengths=[60, 10, 49, 1, 12, 12, 30, 120])
