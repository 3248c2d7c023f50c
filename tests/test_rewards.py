"""Credits, scores, advantages, mixing, metrics: literal expectations first, then a slow second
implementation, then properties over random inputs. Golden numbers (made by UserRL's released
function) live outside the project; that test skips without them.

Run:  python -m pytest tests/test_rewards.py
"""
import itertools
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import rewards as R  # noqa: E402

GOLDEN = ROOT.parent / "shared" / "golden" / "turn_advantages.json"


def close(x, tol=1e-9):
    return pytest.approx(x, rel=tol, abs=tol)


def flat(rows):
    return [x for row in rows for x in row]


def random_batch(rng, low=0.0, high=1.0):
    """Interleaved groups, unequal turns, some untrained turns, some empty trajectories."""
    group = []
    for i in range(rng.randint(1, 4)):
        group += [f"task{i}"] * rng.randint(1, 6)
    rng.shuffle(group)
    turns = [rng.randint(0, 7) for _ in group]
    rewards = [[rng.choice([0.0, rng.uniform(low, high)]) for _ in range(t)] for t in turns]
    tokens = [[rng.randint(0, 9) for _ in range(t)] for t in turns]
    return rewards, tokens, group


# ---- credits ----

def test_naive_and_equalized_credit():
    assert R.turn_credits([0.2, 0, 1], "naive") == [0.2, 0.0, 1.0]
    assert R.turn_credits([0.2, 0, 1], "equalized") == [1.0, 1.0, 1.0]


def test_reward_to_go_reaches_back():
    # turn 2: 0 + .5 x 4; turn 1: 1 + .5 x 2
    assert R.turn_credits([1, 0, 4], "r2g", gamma=0.5) == [2.0, 2.0, 4.0]
    assert R.turn_credits([1, 0, 4], "r2g", gamma=0.0) == [1.0, 0.0, 4.0]
    assert R.turn_credits([1, 0, 4], "r2g", gamma=1.0) == [5.0, 4.0, 4.0]


def test_em_of_nothing_is_half():
    """The bug: em written without its constant gives a turn without reward credit 0, so that every
    failed rollout vanishes from the loss. r = 0 is worth exactly .5, r = 1 exactly 1."""
    assert R.turn_credits([0, 1], "em") == [0.5, 1.0]
    # (1 - e^-1) / (1 - e^-2) = .632121 / .864665 = .731059
    assert R.turn_credits([0.5], "em", k=2.0) == close([0.8655293], 1e-6)
    # goes on below 0: (1 - e^1) / (1 - e^-2) = -1.718282 / .864665 = -1.987223
    assert R.turn_credits([-0.5], "em", k=2.0) == close([-0.4936116], 1e-6)


def test_zero_reward_turn_keeps_its_place():
    """The bug: turns located by a non-zero reward, so that a zero-reward turn vanishes and every
    later credit belongs to the wrong turn. As many numbers out as turns in, always."""
    for method in R.TURN:
        assert len(R.turn_credits([0, 0, 1, 0], method)) == 4
    assert R.turn_credits([0, 0, 1, 0], "r2g", gamma=0.5) == [0.25, 0.5, 1.0, 0.0]


# ---- scores ----

def test_scores_by_hand():
    r = [0.5, 0, 1]
    assert R.trajectory_score(r, "sum") == 1.5
    assert R.trajectory_score(r, "mean") == 0.5
    assert R.trajectory_score(r, "r2g", gamma=0.5) == 0.75  # .5 + 0 + .25


def test_score_of_no_turns_is_zero():
    """The bug: a rollout that ended before its first turn divides by zero in the mean."""
    assert [R.trajectory_score([], m) for m in R.TRAJECTORY] == [0.0, 0.0, 0.0]


# ---- group advantages ----

def test_z_by_hand():
    # mean 2, sample std sqrt((1 + 0 + 1) / 2) = 1
    assert R.group_advantages([1, 2, 3], [7, 7, 7]) == close([-1, 0, 1], 2e-6)
    assert R.group_advantages([1, 2, 6], [7, 7, 7], "center") == close([-2, -1, 3])


def test_std_is_the_sample_std():
    """The bug: population std, which makes two rollouts +-1 where GRPO's released code has +-.7071."""
    assert R.group_advantages([0, 1], [0, 0]) == close([-0.7071, 0.7071], 1e-4)


def test_mean_weighs_a_rare_success_more():
    # mean 1/4: (0 - 1/4) / (1/4) and (1 - 1/4) / (1/4); mean 3/4: 1/3 and -1
    assert R.group_advantages([0, 0, 1, 0], [7] * 4, "mean") == close([-1, -1, 3, -1], 1e-5)
    assert R.group_advantages([1, 0, 1, 1], [7] * 4, "mean") == close([1 / 3, -1, 1 / 3, 1 / 3], 1e-5)


def test_mean_with_penalties_turns_no_sign():
    """The bug: divided by the mean itself, -2 here, the worse of two rollouts is praised; and -1 and 1,
    whose mean is 0, get a million. The mean of |R| is 2 and 1."""
    assert R.group_advantages([-3, -1], [0, 0], "mean") == close([-0.5, 0.5], 1e-5)
    assert R.group_advantages([-1, 1], [0, 0], "mean") == close([-1, 1], 1e-5)
    assert R.group_advantages([0, -1, 1, -4], [0] * 4, "mean") == close([1 / 1.5, 0, 2 / 1.5, -3 / 1.5], 1e-5)


def test_mean_is_maximum_likelihood_in_expectation():
    """Three tries at success probability p = 1/4, all eight outcomes. d log pi / d logit is 1 - p or -p.
    The gradient of p itself is p (1 - p) = 3/16; mean multiplies it by (1 - (1 - p)^2) / p = 7/4, the
    first two terms of 1 / p = sum_k (1 - p)^(k - 1)."""
    p, expected = 0.25, 0.0
    for scores in itertools.product([0, 1], repeat=3):
        chance = math.prod(p if hit else 1 - p for hit in scores)
        z = R.group_advantages(scores, [0] * 3, "mean")
        expected += chance * sum((hit - p) * z_i for hit, z_i in zip(scores, z)) / 3
    assert expected == close(3 / 16 * 7 / 4, 1e-5)


def test_mean_properties():
    """Between -1 and N - 1 where nothing is negative; sums to 0; the unit of the scores does not matter."""
    rng = random.Random(6)
    for _ in range(50):
        low, n = rng.choice([0, 0, -1]), rng.randint(2, 8)
        scores = [rng.choice([0.0, rng.uniform(low, 1)]) for _ in range(n)]
        z = R.group_advantages(scores, [0] * n, "mean")
        assert sum(z) == close(0)
        larger = R.group_advantages([1000 * x for x in scores], [0] * n, "mean")
        assert larger == pytest.approx(z, rel=1e-3, abs=1e-3)
        if low == 0:
            assert -1 <= min(z) and max(z) <= n - 1


def test_groups_by_id_not_by_position():
    """The bug: groups mixed up by repeat against repeat_interleave. The same rollouts in another
    order must get the same numbers, whatever their order and the type of their ids."""
    assert R.group_advantages([0, 10, 2, 30], ["a", "b", "a", "b"], "center") == [-1, -10, 1, 10]
    assert R.group_advantages([0, 2, 10, 30], ["a", "a", "b", "b"], "center") == [-1, 1, -10, 10]


def test_singletons_get_nothing():
    """The bug: verl gives a group of one z = R (mean 0, std 1), so a lone rollout is always praised."""
    assert R.group_advantages([5, 1, 3], [0, 1, 1], "center") == [0.0, -1.0, 1.0]
    assert R.group_advantages([5], [0]) == [0.0]


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e12, 1e290])
def test_float_noise_is_no_signal(scale):
    """The bug: tiny std exploding. .1+.2+.3 and .3+.2+.1 differ in the last bit; at large rewards
    that bit is far above any epsilon and dividing by its std gives advantages of +-.7."""
    a, b = (0.1 + 0.2 + 0.3) * scale, (0.3 + 0.2 + 0.1) * scale
    assert a != b
    assert R.group_advantages([a, b], [0, 0]) == [0.0, 0.0]
    assert R.group_advantages([a, b], [0, 0], "center") == [0.0, 0.0]
    rewards = [[0.1 * scale, 0.2 * scale, 0.3 * scale], [0.3 * scale, 0.2 * scale, 0.1 * scale]]
    for combine, turn in itertools.product(R.COMBINE, R.TURN):
        a = R.turn_advantages(rewards, [[1, 1, 1]] * 2, [0, 0], turn, "sum", combine, gamma=1.0)
        assert flat(a) == [0.0] * 6


def test_cancelled_penalties_are_no_signal():
    """The bug: a relative tolerance alone. .1 + .2 - .3 is 5.6e-17, infinitely far from 0 in relative
    terms, so a group of nothings would be kept in the batch as if it had a winner."""
    assert R.signal_groups([0.1 + 0.2 - 0.3, 0.0], [0, 0])[0] == [False, False]


def test_tiny_spread_gives_tiny_z():
    """The bug: an epsilon inside the square root, or none. Scores 1e-9 apart teach next to nothing."""
    assert max(map(abs, R.group_advantages([0, 1e-9], [0, 0]))) < 1e-3


# ---- combine = scale, the released code ----

def test_scale_by_hand():
    # group: R = 2, 0; center: z = +1, -1. r2g at gamma 1: w = [2, 1, 0], tokens 3, 2, 5.
    # sum n w = 8, N = 5 (the last turn has w 0), so A = w x 5/8.
    rewards, tokens = [[1, 1, 0], [0]], [[3, 2, 5], [4]]
    a = R.turn_advantages(rewards, tokens, [0, 0], "r2g", "sum", "scale", gamma=1.0, normalize="center")
    assert a == [[1.25, 0.625, 0.0], [0.0]]


def test_equalized_scale_is_plain_grpo():
    rng = random.Random(0)
    for _ in range(50):
        rewards, tokens, group = random_batch(rng)
        z = R.group_advantages([R.trajectory_score(r) for r in rewards], group)
        for a, n, z_i in zip(R.turn_advantages(rewards, tokens, group), tokens, z):
            assert a == [z_i if sum(n) else 0.0] * len(n)


def slow_score(r, trajectory, gamma):
    if trajectory == "r2g":
        return sum(x * gamma**t for t, x in enumerate(r))
    return sum(r) / (max(len(r), 1) if trajectory == "mean" else 1)


def slow_credits(r, turn, gamma):
    if turn == "naive":
        return list(r)
    if turn == "equalized":
        return [1.0] * len(r)
    if turn == "r2g":
        return [sum(gamma**(j - t) * r[j] for j in range(t, len(r))) for t in range(len(r))]
    return [0.5 + 0.5 * (1 - math.exp(-2 * x)) / (1 - math.exp(-2)) for x in r]


def slow_scale(rewards, tokens, group, turn, trajectory, gamma, normalize):
    """Second implementation: one entry per token, as the released code's tensors have them."""
    scores, out = [slow_score(r, trajectory, gamma) for r in rewards], []
    for i, r in enumerate(rewards):
        mates = [s for s, g in zip(scores, group) if g == group[i]]
        z = scores[i] - sum(mates) / len(mates)
        if normalize == "std":
            z = z / (statistics.stdev(mates) + 1e-6) if len(mates) > 1 else 0.0
        if normalize == "mean":
            z = z / (statistics.mean(map(abs, mates)) + 1e-6)
        w, per_token = slow_credits(r, turn, gamma), []
        for w_t, n in zip(w, tokens[i]):
            per_token += [w_t] * n
        used = [x for x in per_token if x != 0]
        out.append([w_t * z * len(used) / sum(used) if used else 0.0 for w_t in w])
    return out


@pytest.mark.parametrize("normalize", R.NORMALIZE)
@pytest.mark.parametrize("trajectory", R.TRAJECTORY)
@pytest.mark.parametrize("turn", R.TURN)
def test_scale_equals_the_slow_token_version(turn, trajectory, normalize):
    rng = random.Random(1)
    for _ in range(20):
        rewards, tokens, group = random_batch(rng)
        fast = R.turn_advantages(rewards, tokens, group, turn, trajectory, "scale", 0.7, 2.0, normalize)
        slow = slow_scale(rewards, tokens, group, turn, trajectory, 0.7, normalize)
        assert flat(fast) == close(flat(slow), 1e-7)


def test_golden_numbers_of_the_released_code():
    if not GOLDEN.exists():
        pytest.skip(f"no {GOLDEN}")
    for row in json.loads(GOLDEN.read_text()):
        name = (row["turn"], row["trajectory"], row["gamma"], row["normalize"])
        for r, w, score in zip(row["rewards"], row["turn_credits"], row["trajectory_scores"]):
            assert R.turn_credits(r, row["turn"], row["gamma"]) == pytest.approx(w, abs=1e-4), name
            assert R.trajectory_score(r, row["trajectory"], row["gamma"]) == pytest.approx(score, abs=1e-4)
        a = R.turn_advantages(row["rewards"], row["tokens"], row["group"], row["turn"], row["trajectory"],
                              "scale", row["gamma"], 2.0, row["normalize"])
        for mine, theirs in zip(a, row["advantages"], strict=True):
            assert mine == pytest.approx(theirs, abs=2e-3), name


def test_credits_that_cancel_are_no_sum_to_divide_by():
    """.3 - .1 - .2 is 4e-17, not 0: a penalty that undoes a reward gave advantages of 1e16."""
    a = R.turn_advantages([[.3, -.1, -.2], [.5, 0, 0]], [[7] * 3] * 2, [0, 0], "naive", "mean", "scale")
    assert a[0] == [0.0, 0.0, 0.0] and a[1][0] > 0


# ---- the three defects of scale, in numbers, and shift beside it ----

def first_rollout(rewards, turn, combine):
    """A of the first rollout of one group; 5 tokens a turn, R the sum, z = R - mean."""
    return R.turn_advantages(rewards, [[5] * len(r) for r in rewards], [0] * len(rewards),
                             turn, "sum", combine, normalize="center")[0]


def test_defect_1_scale_punishes_the_turn_that_earned():
    """Scores 1 and 3, z = -1 and +1. In the losing rollout only turn 1 earned anything: scale gives
    it the whole blame, -1, and the idle turn 0. shift blames the idle turn more."""
    assert first_rollout([[1, 0], [3, 0]], "naive", "scale") == [-1.0, 0.0]
    assert first_rollout([[1, 0], [3, 0]], "naive", "shift") == [-0.5, -1.5]  # -1 + (w - .5)


@pytest.mark.parametrize("turn", ["naive", "r2g"])
def test_defect_2_scale_learns_nothing_from_failure(turn):
    """An all-zero rollout against one of score 2: z = -1. Under scale its credits, all 0, erase it."""
    assert first_rollout([[0, 0], [2]], turn, "scale") == [0.0, 0.0]
    assert first_rollout([[0, 0], [2]], turn, "shift") == [-1.0, -1.0]


def test_defect_3_scale_flips_and_explodes_on_penalties():
    """The winner (score -1 against -3, z = +1) has a negative divisor: 5 x 1 - 5 x 2 = -5, N = 10,
    and scale rewards its penalty, +4, and punishes its success, -2. With rewards 1 and -.99 against
    -1.99, so z = +1 again, the divisor is .05 and scale says +200. shift keeps the order."""
    assert first_rollout([[1, -2], [-3]], "naive", "scale") == close([-2, 4])
    assert first_rollout([[1, -2], [-3]], "naive", "shift") == close([2.5, -0.5])  # 1 + (w + .5)
    assert first_rollout([[1, -0.99], [-1.99]], "naive", "scale") == close([200, -198])
    assert first_rollout([[1, -0.99], [-1.99]], "naive", "shift") == close([1.995, 0.005])


# ---- combine = paper ----

def test_paper_by_hand():
    # R = 2, 0: mean 1, population std 1. A = w - 1.
    rewards, tokens = [[2, 0], [0]], [[3, 1], [4]]
    a = R.turn_advantages(rewards, tokens, [0, 0], "naive", "sum", "paper")
    assert flat(a) == close([1, -1, -1], 2e-6)
    # R = 4, 0: mean 2, and no std under center
    a = R.turn_advantages([[4, 0], [0]], tokens, [0, 0], "naive", "sum", "paper", normalize="center")
    assert flat(a) == [2, -2, -2]
    # -1, -3: mean -2, mean |R| = 2, std 1, so A = (w + 2) / 2
    a = R.turn_advantages([[-1, 0], [-3]], tokens, [0, 0], "naive", "sum", "paper", normalize="mean")
    assert flat(a) == close([0.5, 1, -0.5], 1e-5)


def test_paper_equalized_cannot_tell_rollouts_apart():
    """As printed, equalized compares the constant 1 with the group: winner and loser get the same."""
    a = R.turn_advantages([[1], [0]], [[3], [3]], [0, 0], "equalized", "sum", "paper")
    assert a[0] == a[1] == close([1.0], 1e-5)  # (1 - .5) / .5


# ---- combine = shift ----

def test_shift_by_hand():
    # std: R = 1, 0, so z = +-.7071; credits range from 0 to 1; m = (1 x 1 + 3 x 0) / 4 = .25
    a = R.turn_advantages([[1, 0], [0]], [[1, 3], [4]], [0, 0], "naive", "sum", "shift")
    assert flat(a) == close([0.7071068 + 0.75, 0.7071068 - 0.25, -0.7071068], 1e-5)
    # mean: R = 1, 0, so z = +-.5 / .5; u is the range here too
    a = R.turn_advantages([[1, 0], [0]], [[1, 3], [4]], [0, 0], "naive", "sum", "shift", normalize="mean")
    assert flat(a) == close([1 + 0.75, 1 - 0.25, -1], 1e-5)


@pytest.mark.parametrize("normalize", R.NORMALIZE)
@pytest.mark.parametrize("turn", R.TURN)
@pytest.mark.parametrize("low,high", [(0, 1), (-1, 1), (-5e3, 2e3), (0, 1e-7)])
def test_shift_properties(turn, normalize, low, high):
    """Token-weighted mean z; order of credits kept inside a trajectory; within 1 of z."""
    rng = random.Random(2)
    for _ in range(20):
        rewards, tokens, group = random_batch(rng, low, high)
        a = R.turn_advantages(rewards, tokens, group, turn, "r2g", "shift", normalize=normalize)
        z = R.group_advantages([R.trajectory_score(r) for r in rewards], group, normalize)
        for a_i, n, z_i, r in zip(a, tokens, z, rewards):
            w, size = R.turn_credits(r, turn), max(map(abs, [*a_i, 1.0]))
            if sum(n):
                mean = sum(x * k for x, k in zip(a_i, n)) / sum(n)
                assert mean == pytest.approx(z_i, abs=1e-9 * size)
            for s, t in itertools.product(range(len(w)), repeat=2):
                assert a_i[s] >= a_i[t] or w[s] < w[t]
            if normalize != "center":
                assert all(abs(x - z_i) <= 1 for x in a_i)
            if turn == "equalized":
                assert a_i == [z_i] * len(n)
            if not any(r) and r:
                assert a_i == [z_i] * len(n)  # a failed rollout still learns


def test_shift_keeps_a_rare_short_turn_in_bounds():
    """The bug this rules out: dividing by the std of credits, which is .03 when one turn of 5 tokens
    among 6,400 is rewarded, and gives that turn an advantage of about +38."""
    rewards = [[0.0] * 15 + [1.0]] + [[0.0] * 16 for _ in range(7)]
    tokens = [[53] * 15 + [5]] + [[50] * 16 for _ in range(7)]
    a = R.turn_advantages(rewards, tokens, [0] * 8, "naive", "sum", "shift")
    assert max(flat(a)) == a[0][15] < 3.5  # z = 2.47, and less than 1 on top


@pytest.mark.parametrize("normalize", R.NORMALIZE)
@pytest.mark.parametrize("turn", R.TURN)
def test_shift_is_finite_for_any_finite_rewards(turn, normalize):
    extreme = [0.0, 1.0, -1.0, 1e300, -1e300, 1.7e308, -1.7e308]
    extreme += [5e-324, -1e-310, 1e-12, 0.1 + 0.2, 0.3]
    rng = random.Random(3)
    for _ in range(100):
        rewards, tokens, group = random_batch(rng)
        rewards = [[rng.choice(extreme) for _ in r] for r in rewards]
        for trajectory in R.TRAJECTORY:
            a = R.turn_advantages(rewards, tokens, group, turn, trajectory, "shift", normalize=normalize)
            assert all(map(math.isfinite, flat(a)))


def test_shift_ignores_float_noise_in_credits():
    """Credits equal up to the last bit have a range of 1e-16 x 1e300: dividing by it invents a signal."""
    rewards = [[(0.1 + 0.2 + 0.3) * 1e300, (0.3 + 0.2 + 0.1) * 1e300], [0.6e300]]
    a = R.turn_advantages(rewards, [[1, 1], [1]], [0, 0], "naive", "sum", "shift")
    assert a[0][0] == a[0][1] > 0 > a[1][0]


# ---- combine = loo ----

def loo(rewards, group, gamma=1.0, normalize="center"):
    tokens = [[1] * len(r) for r in rewards]
    return R.turn_advantages(rewards, tokens, group, combine="loo", gamma=gamma, normalize=normalize)


def test_loo_by_hand():
    """Two groups, interleaved, of rollouts of one to three turns; who has ended counts as 0."""
    rewards, group = [[1, 0, 4], [1], [2], [0, 8], [0, 2]], ["a", "b", "a", "b", "a"]
    # gamma 1: a has G = 5 4 4 | 2 | 2 2, b has 1 | 8 8
    assert loo(rewards, group) == [[5 - (2 + 2) / 2, 4 - (0 + 2) / 2, 4 - 0],
                                   [1 - 8], [2 - (5 + 2) / 2],
                                   [8 - 1, 8 - 0], [2 - (5 + 2) / 2, 2 - (4 + 0) / 2]]
    # gamma .5: a has G = 2 2 4 | 2 | 1 2, b has 1 | 4 8
    assert loo(rewards, group, 0.5) == [[0.5, 1, 4], [-3], [0.5], [3, 8], [-1, 1]]


def test_loo_divided_by_hand():
    # G_1 = 1 and 3: sample std sqrt(2), mean 2; undivided 1 - 3, then 3 - 1 and 3 - 0
    rewards = [[1], [0, 3]]
    assert loo(rewards, [0, 0]) == [[-2], [2, 3]]
    assert flat(loo(rewards, [0, 0], normalize="std")) == close([-1.4142136, 1.4142136, 2.1213203], 1e-5)
    assert flat(loo(rewards, [0, 0], normalize="mean")) == close([-1, 1, 1.5], 1e-5)
    # G_1 = -1 and -3: divided by 2, not by -2
    assert flat(loo([[-1], [0, -3]], [0, 0], normalize="mean")) == close([1, -1, -1.5], 1e-5)


def centred_first(rewards, baseline):
    """The tempting way: a turn's reward minus baseline(rewards, i, t) first, added up after."""
    out = []
    for i, r in enumerate(rewards):
        centred = [r_t - baseline(rewards, i, t) for t, r_t in enumerate(r)]
        out.append([sum(centred[t:]) for t in range(len(r))])
    return out


def mean_of_the_living(rewards, i, t):
    """Over the rollouts that still play."""
    living = [r[t] for r in rewards if len(r) > t]
    return sum(living) / len(living)


def mean_of_the_others(rewards, i, t):
    """Over all the others, 0 where they have ended: a rollout still pays per turn that it lasts."""
    others = [r for j, r in enumerate(rewards) if j != i]
    return sum(r[t] for r in others if len(r) > t) / len(others)


def expected_gradient(advantages, stop, win):
    """Of a softmax policy with two logits, both 0: go on or stop (probability 1/2 each), then hit or miss.

    Stopping earns `stop`, going on nothing, a hit `win`. d log pi / d logit is 1/2 for going on and for
    hitting, -1/2 for their opposites. Exact: all nine pairs of rollouts, with their chances."""
    rollouts = [(1 / 2, [stop], [-1 / 2]), (1 / 4, [0, win], [1 / 2, 1 / 2]), (1 / 4, [0, 0], [1 / 2, -1 / 2])]
    gradient = [0.0, 0.0]
    for pair in itertools.product(rollouts, repeat=2):
        chances, rewards, slopes = zip(*pair)
        for slope, a in zip(slopes, advantages(rewards)):
            for t, slope_t in enumerate(slope):
                gradient[t] += math.prod(chances) * slope_t * a[t] / 2
    return gradient


def test_loo_is_unbiased_where_rollouts_stop():
    """The bug: each turn's reward centred, then added. Stopping earns 1, going on 3 half of the time: the
    return is (1 - p) + 3 p q, so at p = q = 1/2 its gradient is p (1 - p) (3 q - 1) = 1/8 towards going on
    and 3 p q (1 - q) = 3/8 towards hitting. Centred turn by turn, the policy learns to stop.

    By hand, loo's first number: who stops gets 1 - 1, 1 - 3 or 1 - 0, on average -1/4; who hits 1.75, who
    misses -1.25: 1/2 x -1/2 x -1/4 + 1/4 x 1/2 x 1.75 + 1/4 x 1/2 x -1.25 = 1/8."""
    assert expected_gradient(lambda rewards: loo(rewards, [0, 0]), stop=1, win=3) == [1 / 8, 3 / 8]
    assert expected_gradient(partial(centred_first, baseline=mean_of_the_living), stop=1, win=3) == [-1 / 8, 3 / 32]
    assert expected_gradient(partial(centred_first, baseline=mean_of_the_others), stop=1, win=3)[0] == -1 / 16


def test_loo_hears_the_same_total_at_another_turn():
    """The bug: groups of equal returns dropped, as every other scheme may. Stopping earns 1, a hit 1: who
    stopped and who hit have the same total, and dropping that pair halves the gradient towards hitting,
    p q (1 - q) = 1/8. (Towards going on it is p (1 - p) (q - 1) = -1/8.)"""
    assert loo([[1], [0, 1]], [0, 0]) == [[0], [0, 1]]
    assert expected_gradient(lambda rewards: loo(rewards, [0, 0]), stop=1, win=1) == [-1 / 8, 1 / 8]
    # divided, there is nothing to divide by: a std of 0
    assert loo([[1], [0, 1]], [0, 0], normalize="std") == [[0], [0, 0]]
    # float noise is no signal here either
    same = [[0.1 + 0.2 + 0.3, 0.3], [0.3 + 0.2 + 0.1, 0.3]]
    assert loo(same, [0, 0], gamma=0.0) == [[0, 0], [0, 0]]


def slow_loo(rewards, group, gamma, normalize):
    """Second implementation: the formula, one turn of one rollout at a time."""
    returns = [slow_credits(r, "r2g", gamma) for r in rewards]
    out = []
    for i, mine in enumerate(returns):
        others = [g for j, g in enumerate(returns) if group[j] == group[i] and j != i]
        firsts = [g[0] if g else 0.0 for j, g in enumerate(returns) if group[j] == group[i]]
        v = 1.0
        if normalize == "std" and others:
            v = statistics.stdev(firsts) + 1e-6
        if normalize == "mean":
            v = statistics.mean(map(abs, firsts)) + 1e-6
        a = []
        for t, g_t in enumerate(mine):
            a.append((g_t - statistics.mean(g[t] if len(g) > t else 0.0 for g in others)) / v if others else 0.0)
        silent = normalize != "center" and max(firsts) - min(firsts) < 1e-9
        out.append([0.0] * len(mine) if silent else a)
    return out


@pytest.mark.parametrize("normalize", R.NORMALIZE)
@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_loo_equals_the_slow_version(gamma, normalize):
    rng = random.Random(7)
    for _ in range(50):
        rewards, _, group = random_batch(rng, -0.5, 1.0)
        assert flat(loo(rewards, group, gamma, normalize)) == close(flat(slow_loo(rewards, group, gamma, normalize)))


def test_loo_ignores_what_all_share():
    """A constant on turn t of everyone's reward, and the credit, score and tokens asked for, change nothing."""
    rng = random.Random(8)
    for _ in range(20):
        rewards = [[rng.uniform(-1, 1) for _ in range(4)] for _ in range(5)]
        bonus = [rng.uniform(-1, 1) for _ in range(4)]
        more = [[r_t + b for r_t, b in zip(r, bonus)] for r in rewards]
        a = loo(rewards, [0] * 5, 0.9, "std")
        assert flat(loo(more, [0] * 5, 0.9, "std")) == close(flat(a))
        for turn, trajectory in itertools.product(R.TURN, R.TRAJECTORY):
            tokens = [[rng.randint(0, 9) for _ in range(4)] for _ in range(5)]
            again = R.turn_advantages(rewards, tokens, [0] * 5, turn, trajectory, "loo", 0.9, 2.0, "std")
            assert again == a


def test_leave_one_out_of_nobody():
    assert R.leave_one_out([]) == []
    assert R.leave_one_out([[1.0, 2.0]]) == [[0.0, 0.0]]
    assert R.leave_one_out([[], []]) == [[], []]


# ---- shapes that break things ----

@pytest.mark.parametrize("turn", R.TURN)
@pytest.mark.parametrize("combine", R.COMBINE)
def test_order_of_the_batch_does_not_matter(combine, turn):
    """The bug: statistics taken by position, over the batch, or after a filter. Shuffling a batch of
    interleaved groups only shuffles its advantages."""
    rng = random.Random(4)
    rewards, tokens, group = random_batch(rng)
    order = rng.sample(range(len(group)), len(group))
    a = R.turn_advantages(rewards, tokens, group, turn, "r2g", combine)
    b = R.turn_advantages([rewards[i] for i in order], [tokens[i] for i in order],
                          [group[i] for i in order], turn, "r2g", combine)
    assert flat(b) == close(flat(a[i] for i in order))


@pytest.mark.parametrize("turn", R.TURN)
@pytest.mark.parametrize("combine", R.COMBINE)
def test_empty_untrained_and_silent(combine, turn):
    """Empty trajectories, turns without trained tokens, a singleton and an all-equal group at once.
    The empty rollout counts in its group as score 0; groups without signal are 0 throughout."""
    rewards = [[], [1, 0], [0.4, 0.3], [0.5], [0.5]]
    tokens = [[], [0, 0], [3, 0], [2], [2]]
    a = R.turn_advantages(rewards, tokens, ["x", "x", "lone", "same", "same"], turn, "sum", combine)
    assert [len(x) for x in a] == [0, 2, 2, 1, 1]
    assert a[2:] == [[0.0, 0.0], [0.0], [0.0]]
    assert all(map(math.isfinite, a[1]))
    assert R.turn_advantages([], [], [], turn, "sum", combine) == []


def test_untrained_turn_moves_no_mean():
    # tokens 0: the credit 1 of turn 1 is not in m = 0, so turn 2 gets z itself
    a = R.turn_advantages([[1, 0], [0]], [[0, 4], [4]], [0, 0], "naive", "sum", "shift", normalize="center")
    assert a == [[1.5, 0.5], [-0.5]]


def test_arguments_are_left_alone():
    rewards, tokens, group = [[1, 0], [0, 0]], [[2, 3], [4, 5]], [0, 0]
    R.turn_advantages(rewards, tokens, group, "r2g", combine="shift")
    assert (rewards, tokens, group) == ([[1, 0], [0, 0]], [[2, 3], [4, 5]], [0, 0])


@pytest.mark.parametrize("call,says", [
    (partial(R.turn_credits, [1], "reward"), "turn must be one of naive, equalized, r2g, em; got 'reward'"),
    (partial(R.trajectory_score, [1], "max"), "trajectory must be one of sum, mean, r2g; got 'max'"),
    (partial(R.group_advantages, [1], [0], "rank"), "normalize must be one of std, center, mean; got 'rank'"),
    (partial(R.turn_advantages, [[1]], [[1]], [0], combine="add"), "combine must be one of scale, paper, shift, loo"),
    (partial(R.turn_advantages, [[1]], [[1]], [0], turn="x"), "turn must be one of"),
    (partial(R.mix_rewards, {"a": [1]}, None, [0], "max"), "normalize must be one of sum, per_component"),
    (partial(R.turn_advantages, [[1, 2]], [[1]], [0]), "per trajectory, one number per turn"),
    (partial(R.turn_advantages, [[1]], [], [0]), "per trajectory, one number per turn"),
    (partial(R.turn_advantages, [[1]], [[1]], [0, 1]), "group needs one id per trajectory, got 2 for 1"),
    (partial(R.turn_advantages, [[1]], [[-1]], [0]), "tokens must not be negative"),
    (partial(R.group_advantages, [1, 2], [0]), "group needs one id per trajectory, got 1 for 2"),
    (partial(R.signal_groups, [1, 2], [0]), "group needs one id"),
    (partial(R.turn_credits, [0, math.nan]), "rewards must be finite numbers, got nan"),
    (partial(R.trajectory_score, [math.inf]), "rewards must be finite numbers, got inf"),
    (partial(R.group_advantages, [-math.inf], [0]), "scores must be finite numbers, got -inf"),
    (partial(R.turn_credits, [1], "r2g", gamma=1.5), "need 0 <= gamma <= 1"),
    (partial(R.turn_credits, [1], "em", k=0), "0 < k < inf"),
    (partial(R.mix_rewards, {"a": [1]}, {"b": 1}, [0]), r"components \['a'\], got \['b'\]"),
    (partial(R.mix_rewards, {"a": [1], "b": [1]}, {"a": 1}, [0]), r"components \['a', 'b'\], got \['a'\]"),
    (partial(R.mix_rewards, {}, None, []), "weights must name"),
    (partial(R.mix_rewards, {"a": [1, 2]}, None, [0]), "group needs one id"),
    (partial(R.mix_rewards, {"tone": [math.nan]}, None, [0]), "tone must be finite"),
    (partial(R.pass_at_k, 3, 1, 4), "pass@k needs"),
    (partial(R.pass_at_k, 3, 4, 1), "pass@k needs"),
    (partial(R.pass_at_k, 3, 1, 0), "pass@k needs"),
    (partial(R.mean_ci, []), "at least one value"),
    (partial(R.mean_ci, [1, math.nan]), "values must be finite"),
])
def test_bad_arguments_say_so_in_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


# ---- mixing, signal, metrics ----

def test_mix_is_a_weighted_sum():
    parts = {"rules": [1, 0, 1], "style": [0.5, 1, 0]}
    assert R.mix_rewards(parts, None, [0, 0, 1]) == [1.5, 1.0, 1.0]
    assert R.mix_rewards(parts, {"style": 2, "rules": -1}, [0, 0, 1]) == [0.0, 2.0, -1.0]


def test_per_component_lets_no_wide_range_drown_another():
    """The bug: rules in [0, 100] and style in [0, 1] summed; style could as well not exist. Each
    normalised in its group, they pull alike: here in opposite directions, and cancel."""
    parts = {"rules": [0, 100, 7], "style": [1, 0, 7]}  # the third is a group of its own
    assert R.mix_rewards(parts, None, ["a", "a", "b"]) == [1, 100, 14]
    assert R.mix_rewards(parts, None, ["a", "a", "b"], "per_component") == close([0, 0, 0], 1e-5)
    weighted = R.mix_rewards(parts, {"rules": 1, "style": 3}, ["a", "a", "b"], "per_component")
    assert weighted == close([2 * 0.7071068, -2 * 0.7071068, 0], 1e-5)


def test_signal_groups_are_counted_and_kept():
    """The bug: groups filtered before they are counted, so that the log never shows a dead batch."""
    scores = [1, 5, 0, 0.1 + 0.2 + 0.3, 1, 0.3 + 0.2 + 0.1]
    group = ["win", "lone", "win", "same", "win", "same"]
    keep, counts = R.signal_groups(scores, group)
    assert keep == [True, False, True, False, True, False]
    assert counts == {"groups": 3, "signal": 1, "singleton": 1, "equal": 1}


def test_kept_means_non_zero_z():
    rng = random.Random(5)
    for _ in range(50):
        scores = [rng.choice([0.0, 0.5, 1.0]) for _ in range(12)]
        group = [rng.randrange(5) for _ in scores]
        keep, _ = R.signal_groups(scores, group)
        z = R.group_advantages(scores, group)
        for g in set(group):
            rows = [i for i in range(12) if group[i] == g]
            assert len({keep[i] for i in rows}) == 1
            assert keep[rows[0]] == any(abs(z[i]) > 1e-9 for i in rows)


def test_efficiency_metrics():
    assert [R.effective_turns(r) for r in ([0, 0.2, 0, 1, 0], [1], [0, 0], [], [0, -1])] == [4, 1, 0, 0, 2]
    assert R.time_weighted([1, 0, 0.6]) == close(1.2)
    assert R.time_weighted([]) == 0.0


def test_pass_at_k_by_counting():
    """The bug: pass@k by the first k samples, which depends on their order. Count all subsets."""
    for n, c, k in [(4, 0, 2), (4, 1, 2), (5, 2, 3), (6, 5, 2), (3, 3, 3)]:
        hits = [any(i < c for i in pick) for pick in itertools.combinations(range(n), k)]
        assert R.pass_at_k(n, c, k) == close(sum(hits) / len(hits))
    assert R.pass_at_k(4, 1, 2) == 0.5
    assert 0 < R.pass_at_k(100_000, 1, 10) < 1.1e-4  # no overflow in the binomials


def test_mean_ci_by_hand():
    # n = 2: std sqrt(2), t(1) = 12.7062, half = 12.7062
    assert R.mean_ci([0, 2]) == close((1, 12.7062), 1e-4)
    # n = 16, std 2: t(15) = 2.13145, half = t x 2 / 4
    values = [1.0] * 8 + [-1.0] * 8
    assert R.mean_ci([x * math.sqrt(15 / 4) for x in values])[1] == close(1.065725, 1e-4)
    assert R.mean_ci([3, 3, 3]) == (3.0, 0.0)
    mean, half = R.mean_ci([7])
    assert mean == 7 and math.isnan(half)


@pytest.mark.parametrize("df,t", [(4, 2.776445), (9, 2.262157), (10, 2.228139), (11, 2.200985),
                                  (30, 2.042272), (120, 1.979930), (1000, 1.962339)])
def test_student_quantiles(df, t):
    values = [0.0] * df + [1.0]
    half = t * statistics.stdev(values) / math.sqrt(df + 1)
    assert R.mean_ci(values)[1] == pytest.approx(half, rel=1e-4)


# ---- the file alone ----

def test_runs_alone_in_an_empty_folder(tmp_path):
    """The bug: an import that only resolves inside the project. Copied alone, the file shows itself,
    and its table fits a terminal."""
    shutil.copy(ROOT / "rewards.py", tmp_path)
    done = subprocess.run([sys.executable, "-I", "rewards.py"], cwd=tmp_path, capture_output=True,
                          text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    for word in (*R.TURN, *R.COMBINE, "Oslo", "Lesson"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "nan" not in done.stdout


def test_somebody_reads_only_the_beginning():
    """`python rewards.py | head -1` ended in a BrokenPipeError's traceback."""
    demo = subprocess.Popen([sys.executable, R.__file__], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    demo.stdout.close()
    assert demo.stderr.read() == b"" and demo.wait() == 0
    demo.stderr.close()
