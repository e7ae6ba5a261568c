"""The data loader: full batches, each item once, the same with any number of workers."""

import os
from types import SimpleNamespace

import esm
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from virnucpro.data import (
    GreedyPacker,
    SequenceDataset,
    VarlenCollator,
    create_async_dataloader,
    dataloader_utils,
)
from virnucpro.data.dataloader_utils import hide_cuda
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import make_plan
from virnucpro.sequences.shards import read_shard, write_shard

CONVERTER = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()


class Sequences(Dataset):
    """Random sequences; in a worker each item's id tells what CUDA devices the worker sees."""

    def __init__(self, number, longest=60, seed=0):
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(1, longest + 1, number)
        self.ids = [f"s{i}" for i in rng.permutation(number)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"id": self.ids[index], "sequence": "MKVAW"[index % 5] * int(self.lengths[index])}


class VisibleDevices(Sequences):
    def __getitem__(self, index):
        return {"id": os.environ.get("CUDA_VISIBLE_DEVICES", "unset"), "sequence": "M"}


class WithoutIds(Dataset):
    def __init__(self, number, longest):
        self.lengths = Sequences(number, longest).lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"id": str(index), "sequence": "M" * int(self.lengths[index])}


def collator(budget=128, longest=60, **options):
    return VarlenCollator(CONVERTER, budget, longest, **options)


def load(dataset, collate, **options):
    return list(create_async_dataloader(dataset, collate, num_workers=0, **options))


def ids(batches):
    return [batch["sequence_ids"] for batch in batches]


def flat(lists):
    return [value for values in lists for value in values]


def without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class TestBatches:
    def test_batches_are_the_packers(self):
        dataset = Sequences(300)
        packed = GreedyPacker(128, 60).pack_sequences([dataset[i] for i in range(300)])
        assert ids(load(dataset, collator())) == [[item["id"] for item in b] for b in packed]

    def test_single_items_never_reach_the_collator(self):
        # A published loader does that, and each of its batches holds one sequence.
        batches = load(Sequences(300), collator())
        sizes = [int(batch["cu_seqlens"][-1]) for batch in batches]
        assert sum(sizes) / (128 * len(sizes)) > 0.99

    @pytest.mark.timeout(300)
    def test_two_workers_give_each_item_once_and_the_batches_of_none(self):
        # A published loader lost 10,577 of 794,577 sequences in its workers' buffers.
        dataset = Sequences(203)
        alone = load(dataset, collator())
        loader = create_async_dataloader(dataset, collator(), num_workers=2)
        for _ in range(2):
            batches = list(loader)
            assert sorted(flat(ids(batches))) == sorted(dataset.ids)
            assert ids(batches) == ids(alone)
            assert all(
                torch.equal(a["input_ids"], b["input_ids"])
                for a, b in zip(alone, batches, strict=True)
            )

    @pytest.mark.timeout(300)
    def test_workers_see_no_cuda(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        loader = create_async_dataloader(VisibleDevices(3), collator(), num_workers=1)
        assert set(flat(ids(loader))) == {""}

    @pytest.mark.parametrize("longest", [60, 30])
    def test_without_sorting_batches_follow_the_data_set_and_nothing_is_dropped(self, longest):
        dataset = Sequences(100)
        batches = load(dataset, collator(128, longest, sort_by_length=False))
        assert flat(ids(batches)) == dataset.ids
        starts = np.cumsum([0, *(batch["num_sequences"] for batch in batches)])[1:-1]
        for batch, following in zip(batches, starts, strict=False):
            tokens = min(dataset.lengths[following], longest) + 2
            assert int(batch["cu_seqlens"][-1]) + tokens > 128

    def test_too_long_sequences_are_packed_at_their_cut_length(self):
        batches = load(Sequences(50, longest=90), collator(128, 30))
        assert sum(batch["num_sequences"] for batch in batches) == 50
        assert max(batch["max_seqlen"] for batch in batches) == 32

    def test_without_ids_ties_keep_the_order(self):
        dataset = WithoutIds(40, longest=3)
        found = [int(name) for name in flat(ids(load(dataset, collator(400))))]
        assert found == sorted(range(40), key=lambda index: -dataset.lengths[index])

    @pytest.mark.parametrize("sort_by_length", [True, False])
    def test_no_items_no_batches(self, sort_by_length):
        assert load(Sequences(0), collator(sort_by_length=sort_by_length)) == []


class TestPlannedBatches:
    @pytest.fixture
    def dataset(self, tmp_path):
        rng = np.random.default_rng(0)
        letters = np.frombuffer(b"LAGVSERTID", np.uint8)
        path = tmp_path / "00000.fasta"
        write_shard(path, [rng.choice(letters, rng.integers(1, 60)).tobytes() for _ in range(99)])
        shard = read_shard(path)
        lengths = np.array([len(residues) for residues in shard.residues])
        plan = make_plan(shard.keys, lengths, PlanParameters(100, 50))
        return SequenceDataset(path, plan=plan)

    @pytest.mark.parametrize(("budget", "side_by_side"), [(100, 1), (199, 1), (200, 2), (350, 3)])
    def test_planned_batches_stand_side_by_side(self, dataset, budget, side_by_side):
        planned = [[dataset.ids[i] for i in batch] for batch in dataset.planned_batches]
        expected = [
            flat(planned[first : first + side_by_side])
            for first in range(0, len(planned), side_by_side)
        ]
        assert ids(load(dataset, collator(budget, 50))) == expected

    def test_the_plan_holds_without_a_packer_too(self, dataset):
        batches = load(dataset, collator(100, 50, sort_by_length=False))
        assert ids(batches) == [[dataset.ids[i] for i in b] for b in dataset.planned_batches]

    def test_at_a_smaller_budget_the_items_are_packed_again_and_none_is_dropped(self, dataset):
        batches = load(dataset, collator(52, 50))
        assert sorted(flat(ids(batches))) == sorted(dataset.ids)
        assert max(int(batch["cu_seqlens"][-1]) for batch in batches) <= 52

    def test_cuts_of_the_plan_are_flagged_in_the_batch(self, dataset):
        batches = load(dataset, collator(100, 50))
        flagged = sum(sum(batch["truncated"]) for batch in batches)
        assert flagged == int(dataset.plan.truncated.sum()) > 0

    def test_a_collator_that_would_cut_planned_items_is_refused(self, dataset):
        with pytest.raises(ValueError, match="item of 50 residues, which the collator would cut"):
            load(dataset, collator(100, 49))


class TestTokenBudget:
    def test_a_budget_that_is_given_reaches_collator_and_packer(self):
        # In a published loader it reaches the collator only.
        collate = collator(128)
        batches = load(Sequences(100), collate, token_budget=256)
        assert collate.max_tokens_per_batch == collate.packer.max_tokens == 256
        assert {batch["token_budget"] for batch in batches} == {256}
        assert max(int(batch["cu_seqlens"][-1]) for batch in batches) > 200

    def test_without_cuda_it_is_the_collators(self, monkeypatch):
        without_cuda(monkeypatch)
        batches = load(Sequences(10), collator(150))
        assert batches[0]["token_budget"] == 150

    def test_with_cuda_it_is_calculated_for_the_device(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            dataloader_utils,
            "calculate_token_budget",
            lambda **options: calls.append(options) or 3000,
        )
        collate = collator()
        loader = create_async_dataloader(
            Sequences(3), collate, num_workers=0, device_id=1, model_memory_gb=7.5
        )
        assert calls == [{"device_id": 1, "model_memory_gb": 7.5}]
        assert collate.packer.max_tokens == 3000
        assert loader.pin_memory

    def test_a_budget_below_the_longest_item_is_refused(self):
        with pytest.raises(ValueError, match="cannot hold"):
            load(Sequences(3), collator(128, 60), token_budget=61)


class TestLoader:
    def test_options_of_workers_are_set_with_workers_only(self, monkeypatch):
        without_cuda(monkeypatch)
        loader = create_async_dataloader(Sequences(9), collator(), num_workers=2, prefetch_factor=3)
        assert loader.num_workers == 2
        assert loader.prefetch_factor == 3
        assert loader.persistent_workers
        assert loader.worker_init_fn is hide_cuda
        assert loader.multiprocessing_context.get_start_method() == "spawn"
        assert not loader.pin_memory
        assert create_async_dataloader(Sequences(9), collator(), 0).prefetch_factor is None

    def test_an_iterable_data_set_of_which_each_worker_would_give_all_is_refused(self):
        class Stream(IterableDataset):
            lengths = np.array([1])

            def __iter__(self):
                yield {"id": "a", "sequence": "M"}

        with pytest.raises(TypeError, match="Stream is not a map-style data set"):
            create_async_dataloader(Stream(), collator())

    def test_a_data_set_without_lengths_is_refused_with_what_it_lacks(self):
        with pytest.raises(TypeError, match="list has no `lengths`"):
            create_async_dataloader([{"id": "a", "sequence": "M"}], collator())

    def test_lengths_of_another_number_than_the_items_are_refused(self):
        dataset = Sequences(5)
        dataset.lengths = dataset.lengths[:4]
        with pytest.raises(ValueError, match="5 items, but lengths of"):
            create_async_dataloader(dataset, collator())

    def test_what_has_no_length_is_refused(self):
        with pytest.raises(TypeError, match="not a map-style data set"):
            create_async_dataloader(SimpleNamespace(lengths=[1]), collator())
