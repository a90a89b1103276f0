import numpy as np
import pytest

from biocnn.data.sampler import EpochSampler, ShardSampler


def order(sampler: EpochSampler | ShardSampler) -> list[int]:
    return [index for _, index in sampler]


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    sampler = EpochSampler(100, seed=3)
    first = order(sampler)
    assert sorted(first) == list(range(100))
    assert order(sampler) == first
    sampler.set_epoch(1)
    assert sorted(order(sampler)) == list(range(100))
    assert order(sampler) != first
    assert {epoch for epoch, _ in sampler} == {1}
    assert order(EpochSampler(100, seed=4)) != first


def test_ranks_share_the_batches_of_one_process() -> None:
    whole = order(EpochSampler(103, seed=0))
    shares = [order(EpochSampler(103, seed=0, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(share) for share in shares] == [25] * 4
    interleaved = np.array(shares).T.reshape(-1).tolist()
    assert interleaved == whole[:100]  # batch k of all ranks is batch k of one process with four times the size


def test_left_out_items_change_with_the_epoch() -> None:
    left_out = set()
    for epoch in range(50):
        samplers = [EpochSampler(5, 0, rank, 2) for rank in range(2)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        left_out |= set(range(5)) - {index for sampler in samplers for index in order(sampler)}
    assert left_out == set(range(5))


def test_resuming_skips_what_was_consumed_in_that_epoch_only() -> None:
    sampler = EpochSampler(20, seed=0)
    sampler.set_epoch(2)
    whole = order(sampler)
    sampler.resume(epoch=2, consumed=8)
    assert order(sampler) == whole[8:]
    assert len(sampler) == 20  # Lightning counts the batches of an epoch by it, and the first 8 were done
    sampler.set_epoch(3)
    assert sorted(order(sampler)) == list(range(20))


@pytest.mark.parametrize(("length", "world_size"), [(5, 2), (7, 3), (2, 4), (0, 2), (32768, 6)])
def test_evaluation_items_come_once_and_in_order(length: int, world_size: int) -> None:
    shares = [ShardSampler(length, rank, world_size) for rank in range(world_size)]
    assert [index for share in shares for index in order(share)] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_items_than_processes() -> None:
    with pytest.raises(ValueError, match="3 training items cannot be shared by 4"):
        EpochSampler(3, 0, 0, 4)
