"""One step's examples among ranks and micro-batches: none lost, none twice, within the tokens that are allowed."""

import pytest
from learner_ranks import distinct_tokens, make_batch, pair_example

from learner.dealing import Share, deal
from learner.examples import Batch, Example
from learner.sequences import pack_examples


def passed(shares: list[Share]) -> list[Example]:
    return [example for share in shares for micro_batch in share.micro_batches for example in micro_batch]


@pytest.mark.parametrize("longest_shared", [0, 1000])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("limit", [1, 150, 10_000])
def test_every_example_passes_once_in_micro_batches_of_which_every_rank_has_as_many(
    limit: int, ranks: int, longest_shared: int
) -> None:
    batch = make_batch(0, 11)
    shares = deal(batch, ranks=ranks, micro_batch_tokens=limit, longest_shared=longest_shared)
    assert sorted(map(repr, passed(shares))) == sorted(map(repr, batch.examples))
    assert len({len(share.micro_batches) for share in shares}) == 1
    assert {(share.total, share.shared) for share in shares} == {(11, longest_shared > 0)}
    for share in shares:
        for micro_batch in filter(None, share.micro_batches):
            size = pack_examples(micro_batch, shared=share.shared).input_ids.numel()
            assert size <= limit or len(micro_batch) == 1


def test_ranks_get_about_as_many_tokens() -> None:
    batch = make_batch(0, 40)
    shares = deal(batch, ranks=4, micro_batch_tokens=10_000, longest_shared=1000)
    loads = [
        sum(distinct_tokens(Batch(step=0, examples=micro_batch)) for micro_batch in share.micro_batches)
        for share in shares
    ]
    assert max(loads) < 1.05 * min(loads)


def test_a_rank_without_an_example_passes_the_smallest_as_often_as_the_others_pass_theirs() -> None:
    short, long = (pair_example(((1, 2),), ((5,) * n, (6,) * n)) for n in (3, 30))
    first, second = deal(Batch(step=4, examples=(long,)), ranks=2, micro_batch_tokens=100)
    assert (first.micro_batches, second.micro_batches, second.filler) == (((long,),), ((),), long)
    several = deal(Batch(step=4, examples=(long, short, long)), ranks=2, micro_batch_tokens=1)
    assert [share.micro_batches for share in several] == [((long,), (short,)), ((long,), ())]
    assert all(share.filler is short for share in several)


def test_one_sequence_too_long_for_a_tree_keeps_the_whole_step_out_of_trees() -> None:
    short, long = (pair_example(((1, 2),), ((5,) * n, (6,) * n)) for n in (3, 30))
    [share] = deal(Batch(step=0, examples=(short, long)), ranks=1, micro_batch_tokens=100, longest_shared=31)
    assert not share.shared
    [share] = deal(Batch(step=0, examples=(short, long)), ranks=1, micro_batch_tokens=100, longest_shared=32)
    assert share.shared


def test_a_share_holds_no_more_than_the_step() -> None:
    example = pair_example(((1, 2),), ((5,), (6,)))
    with pytest.raises(ValueError, match=r"step 3: a share needs a micro-batch, .* got 1 with 2 of 1"):
        Share(step=3, micro_batches=((example, example),), filler=example, total=1, shared=True)
