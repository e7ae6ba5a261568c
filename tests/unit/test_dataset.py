"""The data set over FASTA files and planned shards."""

import gzip
import pickle

import numpy as np
import pytest

from virnucpro.data import SequenceDataset
from virnucpro.errors import DataError, InputError
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import make_plan
from virnucpro.sequences.alphabet import sequence_key
from virnucpro.sequences.shards import read_shard, write_shard


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">one first\nMKV\nAW\n>two\nmkj*\n>three\nM\n")
    return path


def planned(tmp_path, sequences, **options):
    path = tmp_path / "00000.fasta"
    write_shard(path, sequences)
    shard = read_shard(path)
    lengths = np.array([len(letters) for letters in shard.residues])
    options = {"token_budget": 12, "max_sequence_length": 10, **options}
    return path, make_plan(shard.keys, lengths, PlanParameters(**options))


SEQUENCES = [b"MKV", b"MKVAWL", b"A", b"WWWWWWWWWWLLL", b"MKVAWLA"]


class TestPlainFasta:
    def test_items_are_the_normalised_records_in_order(self, fasta, caplog):
        dataset = SequenceDataset(fasta)
        assert list(dataset) == [
            {"id": "one", "sequence": "MKVAW"},
            {"id": "two", "sequence": "MKX"},
            {"id": "three", "sequence": "M"},
        ]
        assert len(dataset) == 3
        assert dataset.lengths.tolist() == [5, 3, 1]
        assert dataset.ids == ["one", "two", "three"]
        assert dataset.planned_batches is None
        assert "1 of 3 sequences were normalised, 1 letters became X" in caplog.text

    def test_several_files_are_read_one_after_the_other(self, fasta, tmp_path):
        second = tmp_path / "b.fasta.gz"
        second.write_bytes(gzip.compress(b">four\nAA\n"))
        dataset = SequenceDataset([fasta, str(second)])
        assert dataset.ids == ["one", "two", "three", "four"]
        assert dataset[3] == {"id": "four", "sequence": "AA"}
        assert dataset[-1] == dataset[3]

    def test_an_index_out_of_range_ends_iteration(self, fasta):
        with pytest.raises(IndexError):
            SequenceDataset(fasta)[3]

    def test_a_copy_in_a_worker_gives_the_same_items(self, fasta):
        dataset = SequenceDataset(fasta)
        copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - as a worker gets it
        assert list(copy) == list(dataset)

    def test_an_empty_record_is_not_dropped_silently(self, tmp_path):
        path = tmp_path / "a.fasta"
        path.write_text(">one\nM\n>two\n*\n")
        with pytest.raises(InputError, match=r"line 3: sequence 'two' has no residues"):
            SequenceDataset(path)

    def test_text_among_residues_is_refused(self, tmp_path):
        path = tmp_path / "a.fasta"
        path.write_text(">one\nM\n>two\nMKV\nConnection reset (104).\n")
        with pytest.raises(InputError, match=r"line 5: sequence 'two' has text .*: Connection"):
            SequenceDataset(path)

    def test_an_id_that_comes_twice_is_refused(self, fasta, tmp_path):
        second = tmp_path / "b.fasta"
        second.write_text(">two\nAA\n")
        with pytest.raises(InputError, match=r"b.fasta, line 1: id 'two' .* record 2"):
            SequenceDataset([fasta, second])

    def test_no_file_at_all_is_refused(self):
        with pytest.raises(InputError, match="no sequence in no file"):
            SequenceDataset([])


class TestPlannedShard:
    def test_items_are_the_plans_in_batch_order(self, tmp_path):
        path, plan = planned(tmp_path, SEQUENCES)
        dataset = SequenceDataset(path, plan=plan)
        by_key = {sequence_key(letters).hex(): letters.decode() for letters in SEQUENCES}
        assert [item["sequence"] for item in dataset] == [
            by_key[item["id"]][:10] for item in dataset
        ]
        assert [item["sequence"] for item in dataset] == [
            "WWWWWWWWWW",
            "MKVAWLA",
            "A",
            "MKVAWL",
            "MKV",
        ]
        assert dataset.ids == [item["id"] for item in dataset]
        assert dataset.lengths.tolist() == [10, 7, 1, 6, 3]
        assert dataset.planned_batches == [[0], [1, 2], [3], [4]]

    def test_only_what_was_cut_is_flagged(self, tmp_path):
        path, plan = planned(tmp_path, SEQUENCES)
        flags = [item.get("truncated") for item in SequenceDataset(path, plan=plan)]
        assert flags == [True, None, None, None, None]

    def test_windows_of_a_sequence_give_all_of_it(self, tmp_path):
        path, plan = planned(tmp_path, SEQUENCES, long_sequences="window")
        dataset = SequenceDataset(path, plan=plan)
        key = sequence_key(SEQUENCES[3]).hex()
        windows = [
            item["sequence"]
            for _, item in sorted(zip(plan.start, dataset, strict=True), key=lambda pair: pair[0])
            if item["id"] == key
        ]
        assert windows == ["WWWWWWWWWW", "WWWWWWWLLL"]
        assert not any("truncated" in item for item in dataset)

    def test_a_plan_of_another_shard_is_refused(self, tmp_path):
        _, plan = planned(tmp_path, SEQUENCES[:4])
        path, _ = planned(tmp_path, SEQUENCES)
        with pytest.raises(DataError, match="another shard"):
            SequenceDataset(path, plan=plan)

    def test_a_plan_with_several_files_is_refused(self, tmp_path):
        path, plan = planned(tmp_path, SEQUENCES)
        with pytest.raises(InputError, match="2 files were given"):
            SequenceDataset([path, path], plan=plan)
