"""Which rows land in which micro-batch."""

import pytest
from torch.utils.data import DataLoader

from vibevoice_finetune.data.sampler import EpochLoader, RowBatches


def rows(sampler):
    return [[draw.row for draw in batch if not draw.ghost] for batch in sampler]


def test_every_row_once_an_epoch_and_another_order_in_the_next():
    sampler = RowBatches(7, 2, seed=1)
    first = rows(sampler)
    assert [len(batch) for batch in first] == [2, 2, 2, 1]
    assert sorted(sum(first, [])) == list(range(7))
    assert rows(sampler) == first
    sampler.set_epoch(1)
    second = rows(sampler)
    assert sorted(sum(second, [])) == list(range(7))
    assert second != first
    assert all(draw.epoch == 1 for batch in sampler for draw in batch)


def test_seed_changes_the_order_and_none_keeps_it():
    assert rows(RowBatches(20, 4, seed=1)) != rows(RowBatches(20, 4, seed=2))
    assert sum(rows(RowBatches(5, 2, seed=None)), []) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 13])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows_of_one_process(num_rows, world_size):
    alone = RowBatches(num_rows, 2 * world_size, seed=3)
    together = [RowBatches(num_rows, 2, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(sampler) for sampler in together} == {len(alone)}
    for whole, *parts in zip(alone, *together, strict=True):
        counted = [draw.row for part in parts for draw in part if not draw.ghost]
        assert sorted(counted) == sorted(draw.row for draw in whole)
        assert all(part for part in parts), "every process has something to run"


def test_a_process_without_rows_runs_a_ghost():
    (batch,) = RowBatches(1, 1, seed=0, rank=1, world_size=2)
    assert [(draw.row, draw.ghost) for draw in batch] == [(0, True)]


def test_drop_last():
    assert [len(batch) for batch in RowBatches(7, 2, seed=0, drop_last=True)] == [2, 2, 2]


def test_loader_hands_the_epoch_on():
    class Rows:
        def __len__(self):
            return 4

        def __getitem__(self, draw):
            return draw.epoch

    loader = EpochLoader(Rows(), batch_sampler=RowBatches(4, 2, seed=0), collate_fn=list)
    assert isinstance(loader, DataLoader)
    loader.set_epoch(5)
    assert list(loader) == [[5, 5], [5, 5]]
