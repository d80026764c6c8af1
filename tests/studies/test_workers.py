"""Which process this is, and which files it takes first."""

import pytest

from cortex_fast.studies import Workers, workers_of


def test_each_process_takes_its_own_first_and_all_in_the_end():
    orders = [Workers(rank, 3).order(range(7)) for rank in range(3)]
    assert orders[0] == [0, 3, 6, 1, 4, 2, 5] and orders[2][:2] == [2, 5]
    assert all(sorted(order) == list(range(7)) for order in orders)


@pytest.mark.parametrize(
    ("shard", "environment", "expected"),
    [
        (None, {}, Workers()),
        ("3/40", {"RANK": "1", "WORLD_SIZE": "2"}, Workers(2, 40)),
        (None, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Workers(1, 4, 1)),
        (None, {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}, Workers(5, 8, 2)),
    ],
)
def test_launchers(shard, environment, expected):
    assert workers_of(shard, environment) == expected


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/0"])
def test_a_shard_out_of_range_is_named(shard):
    with pytest.raises(ValueError, match=r"--shard: expected I/N"):
        workers_of(shard, {})
