import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from biocnn.errors import DataError
from biocnn.metrics.predictions import BinaryPredictions

N = 11


def _samples(views):
    generator = torch.Generator().manual_seed(0)
    shape = (N, views) if views else (N,)
    return torch.randn(shape, generator=generator), torch.randint(0, 2, (N,), generator=generator)


def _fill(metric, order, views, batch=3):
    logit, label = _samples(views)
    for chunk in torch.tensor(order, dtype=torch.int64).split(batch):
        if chunk.numel():
            metric.update(chunk, logit[chunk], label[chunk])
    return metric


def _rank_main(rank, folder, orders, views):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        metric = _fill(BinaryPredictions(), orders[rank], views)
        gathered = metric.compute()
        assert metric.index == [] or sum(len(part) for part in metric.index) == len(orders[rank])
        torch.save(gathered, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("orders", "views"),
    [
        # What torch's DistributedSampler deals for 11 samples: the first is repeated to make ranks even.
        (([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 0]), 0),
        # A sampler that does not pad, and views.
        (([10, 8, 6, 4, 2, 0], [1, 3, 5, 7, 9]), 8),
        # A rank that got nothing.
        (([], list(range(N))), 3),
    ],
)
def test_two_processes_gather_what_one_process_has(tmp_path, orders, views):
    mp.spawn(_rank_main, args=(str(tmp_path), orders, views), nprocs=2)
    alone = _fill(BinaryPredictions(), list(range(N)), views).compute()
    for rank in range(2):
        gathered = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert gathered.keys() == alone.keys()
        for name, value in alone.items():
            assert gathered[name].dtype == value.dtype
            assert torch.equal(gathered[name], value), (rank, name)


@pytest.mark.parametrize("views", [0, 1, 4])
def test_samples_come_back_sorted_and_once(views):
    logit, label = _samples(views)
    result = _fill(BinaryPredictions(), [5, 3, 9, 3, 0, 5, 5], views).compute()
    kept = [0, 3, 5, 9]
    assert result["index"].tolist() == kept
    assert torch.equal(result["logit"], logit[kept])
    assert torch.equal(result["label"], label[kept])
    assert [result[name].dtype for name in ("index", "logit", "label")] == [
        torch.int64,
        torch.float32,
        torch.int64,
    ]


def test_of_repeated_indices_the_first_is_kept():
    metric = BinaryPredictions()
    metric.update(torch.tensor([4, 4]), torch.tensor([1.0, 2.0]), torch.tensor([0, 0]))
    metric.update(torch.tensor([4]), torch.tensor([3.0]), torch.tensor([0]))
    assert metric.compute()["logit"].tolist() == [1.0]


def test_reduced_precision_and_small_integers_are_widened():
    metric = BinaryPredictions()
    logit = torch.tensor([0.5, -0.25], dtype=torch.bfloat16, requires_grad=True)
    metric.update(torch.tensor([1, 0], dtype=torch.int32), logit, torch.tensor([1, 0], dtype=torch.uint8))
    result = metric.compute()
    assert result["logit"].tolist() == [-0.25, 0.5]
    assert not result["logit"].requires_grad
    assert result["label"].dtype == torch.int64


@pytest.mark.parametrize("views", [0, 1, 2])
def test_one_sample_is_a_table_with_one_row(views):
    metric = _fill(BinaryPredictions(), [7], views)
    for same in (metric, pickle.loads(pickle.dumps(metric))):
        result = same.compute()
        assert result["index"].tolist() == [7]
        assert result["logit"].shape == ((1, views) if views else (1,))
        assert result["label"].shape == (1,)


def test_reset_forgets_samples_and_views():
    metric = _fill(BinaryPredictions(), [1, 2], 4)
    metric.reset()
    assert _fill(metric, [3], 0).compute()["logit"].shape == (1,)


def test_errors_say_what_came():
    metric = BinaryPredictions()
    with pytest.raises(DataError, match=r"received \(2,\), \(3,\) and \(2,\)"):
        metric.update(torch.arange(2), torch.zeros(3), torch.zeros(2))
    with pytest.raises(DataError, match=r"received \(2,\), \(2,\) and \(2, 1\)"):
        metric.update(torch.arange(2), torch.zeros(2), torch.zeros(2, 1))
    metric.update(torch.arange(2), torch.zeros(2, 8), torch.zeros(2))
    with pytest.raises(DataError, match=r"expected 8 views .* received 0"):
        metric.update(torch.arange(2), torch.zeros(2), torch.zeros(2))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric BinaryPredictions was called before")
def test_nothing_to_compute_is_an_error():
    with pytest.raises(DataError, match="expected at least one batch, received none"):
        BinaryPredictions().compute()
