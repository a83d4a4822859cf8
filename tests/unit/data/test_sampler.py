"""Which rows land in which micro-batch."""

from itertools import chain
from threading import Event

import pytest
from torch.utils.data import DataLoader

from vibevoice_finetune.data.mix import Mix
from vibevoice_finetune.data.sampler import EpochLoader, RowBatches, TokenBatches
from vibevoice_finetune.errors import DataError


def rows(sampler):
    return [[draw.row for draw in batch if not draw.ghost] for batch in sampler]


def test_every_row_once_an_epoch_and_another_order_in_the_next():
    sampler = RowBatches(7, 2, seed=1)
    first = rows(sampler)
    assert [len(batch) for batch in first] == [2, 2, 2, 1]
    assert sorted(chain.from_iterable(first)) == list(range(7))
    assert rows(sampler) == first
    sampler.set_epoch(1)
    second = rows(sampler)
    assert sorted(chain.from_iterable(second)) == list(range(7))
    assert second != first
    assert all(draw.epoch == 1 for batch in sampler for draw in batch)


def test_seed_changes_the_order_and_none_keeps_it():
    assert rows(RowBatches(20, 4, seed=1)) != rows(RowBatches(20, 4, seed=2))
    assert list(chain.from_iterable(rows(RowBatches(5, 2, seed=None)))) == [0, 1, 2, 3, 4]


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


class Watched:
    """Ten rows; each says when it was read, and the seventh cannot be."""

    def __init__(self):
        self.read = {row: Event() for row in range(10)}

    def __len__(self):
        return 10

    def __getitem__(self, draw):
        if draw.row == 6:
            raise DataError("row 6 cannot be read")
        self.read[draw.row].set()
        return draw.row


def loader_in_order(watched):
    return EpochLoader(watched, batch_sampler=RowBatches(10, 1, seed=None), collate_fn=list)


def test_the_next_batch_is_made_while_one_is_used():
    watched = Watched()
    batches = iter(loader_in_order(watched))
    assert next(batches) == [0]
    assert watched.read[2].wait(10), "nobody works ahead"
    assert not watched.read[5].wait(0.05), "and not further than memory allows"
    batches.close()


def test_an_error_ahead_comes_in_its_turn():
    batches = iter(loader_in_order(Watched()))
    assert [next(batches) for _ in range(6)] == [[row] for row in range(6)]
    with pytest.raises(DataError, match="row 6"):
        next(batches)


LENGTHS = [100, 37, 250, 61, 99, 180, 45, 45, 120, 33, 210, 77, 64]


def test_token_batches_hold_every_row_once_and_never_too_many_tokens():
    sampler = TokenBatches(LENGTHS, 300, seed=1)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = rows(sampler)
        assert len(batches) == len(sampler)
        assert sorted(chain.from_iterable(batches)) == list(range(len(LENGTHS)))
        assert max(sum(LENGTHS[row] for row in batch) for batch in batches) <= 300
        assert rows(sampler) == batches
        orders.append(batches)
    assert len({str(order) for order in orders}) == 4


def test_token_batches_are_full():
    lengths = [100 + 7 * (row % 20) for row in range(500)]
    sampler = TokenBatches(lengths, 2000, seed=1)
    assert sum(lengths) / (len(sampler) * 2000) > 0.9


def test_rows_meet_other_rows_in_another_epoch():
    sampler = TokenBatches([100] * 60, 300, seed=1)
    first = {frozenset(batch) for batch in rows(sampler)}
    sampler.set_epoch(1)
    assert len(first & {frozenset(batch) for batch in rows(sampler)}) < len(first) / 2


@pytest.mark.parametrize("world_size", [2, 3])
def test_token_batches_are_dealt_to_processes(world_size):
    alone = rows(TokenBatches(LENGTHS, 300, seed=1))
    together = [TokenBatches(LENGTHS, 300, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    dealt = [rows(sampler) for sampler in together]
    assert len({len(batches) for batches in dealt}) == 1
    in_turn = [batch for at in zip(*dealt, strict=True) for batch in at if batch]
    assert in_turn == alone


def test_a_row_that_never_fits_is_refused():
    with pytest.raises(DataError, match="--max_tokens_per_batch 200: the longest row has 250 tokens"):
        TokenBatches(LENGTHS, 200, seed=1)


def visits(sampler: RowBatches, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return [(draw.epoch, draw.row) for batch in sampler for draw in batch if not draw.ghost]


def mixed(batch_size: int = 5, rank: int = 0, world_size: int = 1) -> RowBatches:
    """Eight rows (0 to 7) and three (8 to 10), of which every epoch takes 8 and 2."""
    mix = Mix(sizes=(8, 3), shares=(0.8, 0.2))
    return RowBatches(11, batch_size, seed=4, rank=rank, world_size=world_size, mix=mix)


def test_an_epoch_of_a_mix_is_a_pass_over_the_first_set_and_a_share_of_the_other() -> None:
    sampler = mixed()
    assert len(sampler) == 2  # ten rows in batches of five
    for epoch in range(6):
        first = [visit for visit in visits(sampler, epoch) if visit[1] < 8]
        assert sorted(first) == [(epoch, row) for row in range(8)]
    # The second set: two visits an epoch, so six epochs pass through its three rows four times.
    second = [visit for epoch in range(6) for visit in visits(sampler, epoch) if visit[1] >= 8]
    assert sorted(second) == [(own, row) for own in range(4) for row in (8, 9, 10)]


def test_every_step_of_a_mix_has_its_shares() -> None:
    """Eight of one and two of the other: each half of the epoch has one of the two."""
    sampler = mixed()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        assert [sum(draw.row >= 8 for draw in batch) for batch in sampler] == [1, 1]


def test_a_small_set_of_a_mix_is_visited_several_times_with_other_draws_each_time() -> None:
    sampler = RowBatches(6, 4, seed=0, mix=Mix(sizes=(4, 2), shares=(0.4, 0.6)))
    assert sorted(visits(sampler, 0)) == [(0, row) for row in range(6)] + [(1, 4), (1, 5), (2, 4), (2, 5)]
    assert min(own for own, row in visits(sampler, 1) if row >= 4) == 3


def test_a_mix_is_the_same_over_processes_and_differs_by_epoch() -> None:
    alone = mixed(batch_size=4)
    together = [mixed(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for epoch in range(3):
        for sampler in [alone, *together]:
            sampler.set_epoch(epoch)
        for batch, *parts in zip(alone, *together, strict=True):
            assert sorted((d.epoch, d.row) for d in batch) == sorted(
                (d.epoch, d.row) for part in parts for d in part if not d.ghost
            )
    assert visits(alone, 0) != visits(alone, 1)
