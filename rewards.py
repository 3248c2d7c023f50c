"""Who gets credit for what: turn rewards in, one advantage per turn out.

    rewards of each turn ─▶ a credit w_t per turn (turn_credits)
                         ─▶ a score R per trajectory (trajectory_score) ─▶ z (group_advantages)
    w_t, z and the tokens of each turn ─▶ an advantage A_t per turn (turn_advantages)

or, with no score in between, returns against returns:

    rewards of each turn ─▶ a return G_t per turn ─▶ A_t = G_t - the others' mean G_t ("loo")

Also: several rewards mixed into one (UserLM-R1), which groups carry a signal, and the numbers an
evaluation reports. Formulas: UserRL, arXiv 2509.19736, and its released code.

Left out: critics and GAE (GRPO has none), tensors (grpo.py spreads advantages over tokens), and
statistics across batches. Plain lists of floats; standard library only.

Run:  python rewards.py      one conversation, its credits and advantages under every scheme
"""
import itertools
import math
import os
import sys
from statistics import NormalDist

EPS = 1e-6     # added to divisors, as in the released code: a tiny spread gives a tiny z
HUGE = 1e300   # larger magnitudes saturate here, so that sums of finite rewards stay finite

TURN, TRAJECTORY = ("naive", "equalized", "r2g", "em"), ("sum", "mean", "r2g")
COMBINE, NORMALIZE = ("scale", "paper", "shift", "loo"), ("std", "center", "mean")


# ---- one trajectory ----------------------------------------------------------------------------

def turn_credits(rewards, method="equalized", gamma=0.8, k=2.0):
    """Credit w_t of each turn of one trajectory (UserRL's turn-level schemes).

    naive      w_t = r_t
    equalized  w_t = 1
    r2g        w_t = sum_{j>=t} gamma^(j-t) r_j                       reward-to-go
    em         w_t = .5 + .5 (1 - e^(-k r_t)) / (1 - e^(-k))          exponential mapping

    rewards: one number per turn; returns as many. em is made for r in [0, 1], which it maps to
    [.5, 1]: a turn without reward keeps half a credit. Outside, the same formula goes on, so that
    a penalty stays below nothing.
    ValueError: unknown method, NaN or inf, gamma outside [0, 1], k <= 0.
    """
    _choice("turn", method, TURN)
    if not (0 <= gamma <= 1 and 0 < k < math.inf):
        raise ValueError(f"need 0 <= gamma <= 1 and 0 < k < inf, got gamma={gamma!r}, k={k!r}")
    r = _numbers("rewards", rewards)
    if method == "naive":
        return r
    if method == "equalized":
        return [1.0] * len(r)
    if method == "em":
        # min: exp must not overflow for hugely negative rewards
        return [0.5 + 0.5 * math.expm1(min(-k * x, 600.0)) / math.expm1(-k) for x in r]
    to_go, credits = 0.0, []
    for x in reversed(r):
        to_go = x + gamma * to_go
        credits.append(to_go)
    return credits[::-1]


def trajectory_score(rewards, method="r2g", gamma=0.8):
    """Score R of one trajectory (UserRL's trajectory-level schemes); 0 when it has no turns.

    sum   sum_t r_t                     the paper's Sum
    mean  mean_t r_t                    what the released code runs under the name Sum
    r2g   sum_t gamma^(t-1) r_t         t from 1: early progress counts more

    ValueError: unknown method, NaN or inf, gamma outside [0, 1] (r2g).
    """
    _choice("trajectory", method, TRAJECTORY)
    to_go = turn_credits(rewards, "r2g", gamma if method == "r2g" else 1.0)
    if not to_go:
        return 0.0
    return to_go[0] / len(to_go) if method == "mean" else to_go[0]


# ---- one batch: trajectories in groups, a group being the rollouts of one task -----------------

def group_advantages(scores, group, normalize="std"):
    """z of each trajectory: its score against the scores of its group.

    std     z = (R - mean) / (sample std + 1e-6)      GRPO, arXiv 2402.03300
    center  z = R - mean                              Dr. GRPO, arXiv 2503.20783: dividing by the
                                                      std weights easy and hard tasks unequally
    mean    z = (R - mean) / (mean |R| + 1e-6)        MaxRL, arXiv 2602.02710, with |R| for R

    Why mean: of N rollouts that score 0 or 1 each failure gets -1, a lone success N - 1, and one of
    many nearly 0. The expected gradient is that of log p, the success rate's logarithm, as far as
    N rollouts can tell, so a task weighs about 1 / p. |R| is the same where no score is negative;
    with penalties the mean itself may be 0, or below it and turn every sign. Mind that a constant
    added to all scores changes z: 0 must mean "nothing achieved".

    scores: one number per trajectory; group: one hashable id (int, string) per trajectory, in any
    order. Groups without signal (one member, or all equal up to float noise) get exactly 0.
    ValueError: unknown normalize, unequal lengths, NaN or inf.
    """
    _choice("normalize", normalize, NORMALIZE)
    scores = _numbers("scores", scores)
    z = [0.0] * len(scores)
    for rows in _members(group, len(scores)):
        mates = [scores[i] for i in rows]
        if _equal(mates):
            continue
        mean, unit = math.fsum(mates) / len(mates), _unit(mates, normalize, ddof=1)
        for i in rows:
            z[i] = (scores[i] - mean) / unit
    return z


def _unit(scores, normalize, ddof):
    if normalize == "center":
        return 1.0
    if normalize == "mean":
        return math.fsum(map(abs, scores)) / len(scores) + EPS
    return _mean_std(scores, ddof)[1] + EPS


def turn_advantages(rewards, tokens, group, turn="equalized", trajectory="r2g",
                    combine="scale", gamma=0.8, k=2.0, normalize="std"):
    """Advantage A_t of every turn of every trajectory, from turn credits w_t and group-relative z.

    scale  A_t = w_t z N / sum_t(n_t w_t)         the released code; N counts the tokens whose w_t
                                                  is not 0; all 0 when the sum is 0. Equalized
                                                  gives plain GRPO: A_t = z.
    paper  A_t = (w_t - mean R) / (std R + 1e-6)  as printed, population std; mean |R| under "mean",
                                                  1 under "center". Equalized then gives a group
                                                  one advantage.
    shift  A_t = z + (w_t - m) / u                ours. m: the trajectory's token-weighted mean
                                                  credit. u: the group's range of credits,
                                                  max w - min w + 1e-6; 1 under "center".
    loo    A_t = (G_t - mean of the others' G_t) / v   sum first, centre afterwards: leave_one_out.
                                                  G_t = sum_{j>=t} gamma^(j-t) r_j. v: the group's
                                                  sample std of G_1 + 1e-6; mean |G_1| + 1e-6 under
                                                  "mean", 1 under "center".

    Why shift: the token-weighted mean of A_t is z, whatever the signs of w; more credit never means
    less advantage; equal credits give A_t = z. u is a range, for a std is tiny when one short turn
    among hundreds is rewarded: so |A_t - z| < 1 under "std" and "mean", whose z have no unit.

    loo reads neither turn nor trajectory: its credit is G_t and its score G_1, "r2g" for both.

    rewards, tokens: per trajectory, one number per turn; tokens: the trained tokens n_t of the
    turn, 0 allowed. group: one id per trajectory. Returns per trajectory one number per turn.
    Groups without signal get 0 under every scheme; but loo under "center" hears groups of equal
    G_1 too: the same total at other turns is a signal, and without it loo would be biased.
    ValueError: as in the functions above, rewards and tokens that disagree in length, negative
    tokens.
    """
    _choice("combine", combine, COMBINE)
    if [len(r) for r in rewards] != [len(n) for n in tokens]:
        raise ValueError("rewards and tokens must both hold, per trajectory, one number per turn")
    tokens = [_numbers("tokens", n) for n in tokens]
    if any(n_t < 0 for n in tokens for n_t in n):
        raise ValueError("tokens must not be negative")
    if combine == "loo":
        turn = trajectory = "r2g"
    credits = [turn_credits(r, turn, gamma, k) for r in rewards]
    scores = [trajectory_score(r, trajectory, gamma) for r in rewards]
    z = group_advantages(scores, group, normalize)
    out = [[0.0] * len(w) for w in credits]
    for rows in _members(group, len(rewards)):
        R, w, n = [scores[i] for i in rows], [credits[i] for i in rows], [tokens[i] for i in rows]
        # equal scores have no std to divide by; loo undivided needs no such rule
        if not _equal(R) or (combine, normalize) == ("loo", "center"):
            for i, a in zip(rows, _one_group(R, w, n, [z[i] for i in rows], combine, normalize)):
                out[i] = a
    return out


def _one_group(R, w, n, z, combine, normalize):
    # R, z: a number per rollout; w, n: a number per turn of each
    if combine == "scale":
        return [_scale(w_i, n_i, z_i) for w_i, n_i, z_i in zip(w, n, z)]
    if combine == "paper":
        mean, unit = math.fsum(R) / len(R), _unit(R, normalize, ddof=0)
        return [[(w_t - mean) / unit for w_t in w_i] for w_i in w]
    if combine == "loo":
        unit = _unit(R, normalize, ddof=1)
        return [[a_t / unit for a_t in a] for a in leave_one_out(w)]
    everyone = [w_t for w_i in w for w_t in w_i]
    # credits that differ by float noise only must shift nothing
    spread = math.inf if _equal(everyone) else max(everyone) - min(everyone)
    unit = 1.0 if normalize == "center" else spread + EPS
    means = [_token_mean(w_i, n_i) for w_i, n_i in zip(w, n)]
    return [[z_i + (w_t - m) / unit for w_t in w_i] for w_i, z_i, m in zip(w, z, means)]


def workings(rewards, tokens, gamma=0.8, k=2.0, normalize="std"):
    """Every scheme's advantages in one group, and the numbers that their formulas are filled in with.

    rewards, tokens: as in `turn_advantages`, of one group. Returns, by the names of its formulas:
    advantages {"naive sum scale", ..., "loo": per rollout, A_t of each turn}; per rollout w {turn
    scheme: credits}, used and sum {turn scheme: N and sum_t(n_t w_t) of scale}, m {turn scheme},
    R and z {trajectory scheme}, others (loo's mean of the others' G_t, a number per turn); for the
    group range {turn scheme: max w - min w}, mean, unit and paper_unit {trajectory scheme: what
    R is compared with and divided by}.
    ValueError: as there.
    """
    group, everything = [0] * len(rewards), {"gamma": gamma, "k": k, "normalize": normalize}
    out = {"advantages": {}, "w": {}, "used": {}, "sum": {}, "m": {}, "range": {}, "R": {}, "z": {},
           "mean": {}, "unit": {}, "paper_unit": {}, **everything}
    for turn in TURN:
        w = out["w"][turn] = [turn_credits(r, turn, gamma, k) for r in rewards]
        pairs = list(zip(w, tokens))
        out["used"][turn] = [sum(n_t for w_t, n_t in zip(*pair) if w_t != 0) for pair in pairs]
        out["sum"][turn] = [math.fsum(w_t * n_t for w_t, n_t in zip(*pair)) for pair in pairs]
        out["m"][turn] = [_token_mean(*pair) for pair in pairs]
        everyone = [w_t for w_i in w for w_t in w_i]
        out["range"][turn] = 0.0 if _equal(everyone) else max(everyone) - min(everyone)
    for trajectory in TRAJECTORY:
        R = out["R"][trajectory] = [trajectory_score(r, trajectory, gamma) for r in rewards]
        out["z"][trajectory] = group_advantages(R, group, normalize)
        out["mean"][trajectory] = math.fsum(R) / len(R)
        alone = len(R) == 1                         # it has no std, and nothing is divided
        out["unit"][trajectory] = 0.0 if alone else _unit(R, normalize, ddof=1)
        out["paper_unit"][trajectory] = _unit(R, normalize, ddof=0)
    G = out["w"]["r2g"]
    out["others"] = [[g_t - a_t for g_t, a_t in zip(*pair)] for pair in zip(G, leave_one_out(G))]
    ways = [(*way, combine) for combine in COMBINE[:-1] for way in itertools.product(TURN, TRAJECTORY)]
    for turn, trajectory, combine in [*ways, ("naive", "sum", "loo")]:      # loo reads neither
        name = combine if combine == "loo" else f"{turn} {trajectory} {combine}"
        out["advantages"][name] = turn_advantages(
            rewards, tokens, group, turn, trajectory, combine, **everything)
    return out


def leave_one_out(returns):
    """A_t = G_t - the mean over the group's other rollouts of their G_t (0 where they have ended).

    returns: of one group, per rollout one finite G_t per turn; returns as many. Alone: 0.

    Unbiased wherever rollouts stop: what is subtracted at turn t is settled by the others alone,
    and a number that an action cannot change favours no action on average. At gamma 1, undivided,
    sum_t A_t grad log pi_t is then in expectation the gradient of the expected return. Centring
    each turn's reward first and adding then is biased: a rollout pays one baseline for each turn it
    lasts, so its own choice to go on sets the bill, a hidden fine on every further turn (a bonus
    where rewards are negative). And who goes on alone is compared with itself and learns nothing.
    """
    out = [[0.0] * len(g) for g in returns]
    for t in range(max(map(len, returns), default=0)):
        column = [g[t] if t < len(g) else 0.0 for g in returns]
        if _equal(column):
            continue
        total = math.fsum(column)
        for a, g_t in zip(out, column):
            if t < len(a):
                a[t] = g_t - (total - g_t) / (len(column) - 1)
    return out


def _scale(w, n, z):
    parts = [n_t * w_t for n_t, w_t in zip(n, w)]
    divisor = math.fsum(parts)
    # penalties and rewards that cancel leave the noise of their digits, no sum to divide by
    if abs(divisor) <= 1e-12 * math.fsum(map(abs, parts)):
        return [0.0 for _ in w]
    used = sum(n_t for n_t, w_t in zip(n, w) if w_t != 0)
    return [w_t * (used / divisor) * z for w_t in w]


def _token_mean(w, n):
    if not w:
        return 0.0
    # measured from the first credit, so that equal credits have exactly that mean
    total = math.fsum(n) or 1.0
    return w[0] + math.fsum(n_t / total * (w_t - w[0]) for n_t, w_t in zip(n, w))


def signal_groups(scores, group):
    """Which trajectories can teach: (keep, counts).

    keep: one bool per trajectory, False where its group is a singleton or all its scores are equal
    (up to float noise), that is where z is 0. (Under loo and "center" advantages may differ from 0
    all the same: there ask them.) counts: {"groups", "signal", "singleton", "equal"}, in groups.
    Dropping and redrawing such groups is DAPO's dynamic sampling, arXiv 2503.14476.
    """
    scores = _numbers("scores", scores)
    keep, counts = [True] * len(scores), dict(groups=0, signal=0, singleton=0, equal=0)
    for rows in _members(group, len(scores)):
        signal = not _equal([scores[i] for i in rows])
        dead = "singleton" if len(rows) == 1 else "equal"
        counts["groups"] += 1
        counts["signal" if signal else dead] += 1
        for i in rows:
            keep[i] = signal
    return keep, counts


def mix_rewards(components, weights, group, normalize="sum"):
    """Several rewards per trajectory into one (UserLM-R1, arXiv 2601.09215: rules plus rubrics).

    sum            R = sum_c weight_c r_c        the paper
    per_component  R = sum_c weight_c z_c        z_c: r_c normalised inside its group, so that a
                                                 wide range drowns no other (GDPO, 2601.05242)

    components: name -> one number per trajectory; weights: name -> number, None for all 1; group:
    one id per trajectory. Returns one number per trajectory. ValueError: unknown normalize, no
    components, names that differ, unequal lengths, NaN or inf.
    """
    _choice("normalize", normalize, ("sum", "per_component"))
    weights = dict.fromkeys(components, 1.0) if weights is None else weights
    if not components or set(weights) != set(components):
        raise ValueError(f"weights must name exactly the components {sorted(components)}, "
                         f"got {sorted(weights)}")
    factors, columns = _numbers("weights", [weights[c] for c in components]), []
    for name, values in components.items():
        values = _numbers(name, values)
        z = group_advantages(values, group)   # also checks the lengths
        columns.append(z if normalize == "per_component" else values)
    return [math.fsum(f * x for f, x in zip(factors, row)) for row in zip(*columns)]


# ---- what an evaluation reports ----------------------------------------------------------------

def effective_turns(rewards):
    """Turns until the last non-zero reward, that turn included; 0 if there is none (UserRL)."""
    return max((t for t, r in enumerate(_numbers("rewards", rewards), 1) if r != 0), default=0)


def time_weighted(rewards):
    """sum_i r_i / (i + 1), i from 0: a reward is worth less the later it comes (UserRL)."""
    return math.fsum(r / t for t, r in enumerate(_numbers("rewards", rewards), 1))


def pass_at_k(n, c, k):
    """Chance that k of n samples, c of them correct, hold a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased (arXiv 2107.03374). ValueError unless 0 <= c <= n and 1 <= k <= n."""
    if not 0 <= c <= n >= k >= 1:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def best_of_k(values, k):
    """Expected largest of k of the values, drawn without putting back: of each value the chance that it is that.

    Unbiased for best-of-k by a perfect judge; of 0s and 1s it is pass_at_k. ValueError unless 1 <= k <= n."""
    x = sorted(_numbers("values", values))
    if not len(x) >= k >= 1:
        raise ValueError(f"best of k needs 1 <= k <= n, got n={len(x)}, k={k}")
    return math.fsum(v * math.comb(i, k - 1) for i, v in enumerate(x)) / math.comb(len(x), k)


def mean_ci(values):
    """(mean, half width of its 95 % interval), Student's t. One value: the half width is nan.

    The t quantile is within 2e-4 of the true one. ValueError: no values, NaN or inf."""
    x = _numbers("values", values)
    if not x:
        raise ValueError("mean_ci needs at least one value")
    df, q = len(x) - 1, NormalDist().inv_cdf(0.975)
    if df == 0:
        return x[0], math.nan
    # Abramowitz & Stegun 26.7.5; below ten degrees of freedom the series is still poor
    t = (q + (q**3 + q) / (4 * df) + (5 * q**5 + 16 * q**3 + 3 * q) / (96 * df**2)
         + (3 * q**7 + 19 * q**5 + 17 * q**3 - 15 * q) / (384 * df**3))
    if df < 10:
        t = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)[df - 1]
    mean, std = _mean_std(x, ddof=1)
    return mean, t * std / math.sqrt(len(x))


# ---- helpers -----------------------------------------------------------------------------------

def _choice(name, value, known):
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _numbers(name, values):
    values = [float(v) for v in values]
    if bad := [v for v in values if not math.isfinite(v)]:
        raise ValueError(f"{name} must be finite numbers, got {bad[0]}")
    return [max(-HUGE, min(HUGE, v)) for v in values]


def _members(group, n):
    # rows by id, never by position: the rollouts of a task need not be neighbours
    if len(group) != n:
        raise ValueError(f"group needs one id per trajectory, got {len(group)} for {n}")
    rows = {}
    for i, g in enumerate(group):
        rows.setdefault(g, []).append(i)
    return rows.values()


def _equal(values):
    # the same rewards added in another order differ in the last bits; that is no signal
    return len(values) < 2 or math.isclose(min(values), max(values), rel_tol=1e-12, abs_tol=1e-12)


def _mean_std(values, ddof):
    mean = math.fsum(values) / len(values)
    # hypot squares without overflow
    return mean, math.hypot(*(v - mean for v in values)) / math.sqrt(len(values) - ddof)


# ---- python rewards.py -------------------------------------------------------------------------

def _demo():
    said = [("[search] flights to Oslo on 3 May", "Twelve flights, F1 to F12, 60 to 410 euro."),
            ("[action] Anything else I should know?", "Could you be more specific?"),
            ("[action] Do you mind changing planes?", "My schedule is packed that day."),
            ("[answer] F7", "Two stops? No, that does not suit me.")]
    rewards = [[0.2, 0.0, 0.2, 0.0], [0.2, 0.2, 1.0], [0.2, 0.0, 0.2, 0.8], [0.0, 0.0]]
    tokens, group = [[12, 14, 10, 6], [12, 10, 6], [12, 14, 10, 6], [14, 6]], ["oslo"] * 4
    scores = [trajectory_score(r) for r in rewards]
    print("Four rollouts of one task. R: trajectory score r2g, gamma 0.8; z: R against the group.")
    z = [group_advantages(scores, group, normalize) for normalize in NORMALIZE]
    for name, r, score, *z_i in zip("ABCD", rewards, scores, *z):
        cells = "  ".join(f"{normalize} {x:+.2f}" for normalize, x in zip(NORMALIZE, z_i))
        print(f"  {name}  R {score:.2f}  z: {cells}  turn rewards {r}")

    print("\nRollout A\n      user   I fly to Oslo on 3 May. Could you find me a flight?")
    for t, ((agent, user), r, n) in enumerate(zip(said, rewards[0], tokens[0]), 1):
        print(f"  A{t}  agent  {agent:<38}  reward {r:.1f}, {n:>2} tokens\n      user   {user}")

    print(f"\n{'':21}{'A1':>6}{'A2':>8}{'A3':>8}{'A4':>8}{'token mean':>15}{'D1':>9}{'D2':>8}")
    for turn in TURN:
        print(f"{turn:<11}credit ", *(f"{w:8.2f}" for w in turn_credits(rewards[0], turn)), sep="")
        for combine in COMBINE:
            if combine == "loo" and turn != "r2g":   # it reads no other credit
                continue
            a, _, _, d = turn_advantages(rewards, tokens, group, turn, combine=combine)
            cells = [f"{x + 0.0:+8.2f}" for x in [*a, _token_mean(a, tokens[0]), *d]]   # no -0.00
            print(f"{'':11}{combine:<7}", *cells[:4], " " * 6, cells[4], " ", *cells[5:], sep="")

    a, _, _, d = turn_advantages(rewards, tokens, group, "naive", combine="scale")
    b, _, _, e = turn_advantages(rewards, tokens, group, "naive", combine="shift")
    print(f"\nLesson (naive): A1 earned, A2 not, D failed; scale {a[0]:+.2f} {abs(a[1]):.0f} {d[0]:.0f}"
          f" inverts that, shift {b[0]:+.2f} {b[1]:+.2f} {e[0]:+.2f}.")


if __name__ == "__main__":
    try:
        _demo()
        sys.stdout.flush()
    except BrokenPipeError:                      # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
