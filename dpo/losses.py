"""The other losses of the family, one formula each, and other divergences than the reverse KL.

Every formula sees a pair as two numbers, c = s(y+) and r = s(y-): how much more likely than the
reference the policy finds the chosen and the rejected answer, summed over tokens, in nats. Most of
them see only the margin beta (c - r). A note says where a paper and TRL 1.16 differ, and which is
meant. Shape legend: P pairs.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo", "nca", "bco", "sppo", "apo-zero", "apo-down",
    "discopop", "sigmoid-norm", "group", "ranking",
]  # fmt: skip
Divergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]

SMOOTHED = ("sigmoid", "robust", "exo")  # losses that define label smoothing
DIVERGENT = (
    "sigmoid", "hinge", "ipo", "robust", "exo", "discopop", "sigmoid-norm", "group", "ranking",
)  # fmt: skip
LARGEST_EXPONENT = 40.0  # e^40 = 2e17: beyond it a divergence's score is held, and stays finite
DISCOPOP_TEMPERATURE = 0.05  # the paper's


class Pairs(NamedTuple):
    """P pairs as the formulas see them; every tensor is (P,)."""

    c: Tensor  # s(y+), or f'(e^s(y+)) under another divergence
    r: Tensor  # s(y-), likewise
    beta: float
    label_smoothing: float
    chosen_lengths: Tensor | None  # tokens of y+, its stop token included
    rejected_lengths: Tensor | None
    questions: Tensor | None  # pairs of one question have the same number
    chosen_answers: Tensor | None = None  # pairs of one chosen answer have the same number

    @property
    def margin(self) -> Tensor:
        """Return m = beta (c - r)."""
        return self.beta * (self.c - self.r)

    def per_token(self) -> Tensor:
        """Return c / |y+| - r / |y-|."""
        if self.chosen_lengths is None or self.rejected_lengths is None:
            raise ValueError("this loss needs chosen_lengths and rejected_lengths")
        return self.c / self.chosen_lengths - self.r / self.rejected_lengths


def hinge(p: Pairs) -> Tensor:
    """SLiC (Zhao et al. 2023, arXiv 2305.10425) on DPO's margin: max(0, 1 - m)."""
    return torch.relu(1 - p.margin)


def ipo(p: Pairs) -> Tensor:
    """IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17): (c/|y+| - r/|y-| - 1/(2 beta))^2.

    The paper sums over tokens; its authors said later that means were used, as here and in TRL.
    """
    return (p.per_token() - 1 / (2 * p.beta)) ** 2


def robust(p: Pairs) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): unbiased for a share e of wrong labels.

    [(1 - e) softplus(-m) - e softplus(m)] / (1 - 2 e)
    """
    e = p.label_smoothing
    return ((1 - e) * F.softplus(-p.margin) - e * F.softplus(p.margin)) / (1 - 2 * e)


def exo(p: Pairs) -> Tensor:
    """EXO (Ji et al. 2024, arXiv 2402.00856, eq. 16) at K = 2: KL(q || p), the other way round.

    sigma(m) [log sigma(m) - log(1 - e)] + sigma(-m) [log sigma(-m) - log e], with 0 < e < 1/2
    """
    m, e = p.margin, p.label_smoothing
    won = torch.sigmoid(m) * (F.logsigmoid(m) - math.log1p(-e))
    return won + torch.sigmoid(-m) * (F.logsigmoid(-m) - math.log(e))


def nca(p: Pairs) -> Tensor:
    """NCA at K = 2 (Chen et al. 2024, arXiv 2402.05369).

    -log sigma(beta c) - 1/2 log sigma(-beta c) - 1/2 log sigma(-beta r)
    """
    c, r = p.beta * p.c, p.beta * p.r
    return F.softplus(-c) + F.softplus(c) / 2 + F.softplus(r) / 2


def bco(p: Pairs) -> Tensor:
    """BCO on pairs (Jung et al. 2024, arXiv 2404.04656): -log sigma(beta c) - log sigma(-beta r).

    The paper subtracts a running mean from both rewards; TRL's DPO trainer does not, nor does this.
    """
    return F.softplus(-p.beta * p.c) + F.softplus(p.beta * p.r)


def sppo(p: Pairs) -> Tensor:
    """SPPO, hard (Wu et al. 2024, arXiv 2405.00675, eq. 4.7): (c - h)^2 + (r + h)^2.

    h = 1 / (2 beta). The paper's winning probabilities are set to 1 and 0, as in TRL, and its eta
    is 1 / beta.
    """
    return (p.c - 1 / (2 * p.beta)) ** 2 + (p.r + 1 / (2 * p.beta)) ** 2


def apo_zero(p: Pairs) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, 2408.06266, eq. 7): 1 - sigma(beta c) + sigma(beta r).

    Where the chosen answers are better than what the model says: they rise, the rejected ones fall.
    """
    return torch.sigmoid(-p.beta * p.c) + torch.sigmoid(p.beta * p.r)


def apo_down(p: Pairs) -> Tensor:
    """APO-down (eq. 8 there): sigma(beta c) + 1 - sigma(m).

    Where the chosen answers are worse than what the model says: both fall, the rejected ones more.
    """
    return torch.sigmoid(p.beta * p.c) + torch.sigmoid(-p.margin)


def discopop(p: Pairs) -> Tensor:
    """DiscoPOP, also LRML (Lu et al. 2024, arXiv 2406.08414, eq. 5), with w = sigma(m / 0.05).

    (1 - w) softplus(-m) + w e^-m; the second term is e^(log w - m), which no m overflows.
    """
    log_weight = F.logsigmoid(p.margin / DISCOPOP_TEMPERATURE)
    logistic = torch.sigmoid(-p.margin / DISCOPOP_TEMPERATURE) * F.softplus(-p.margin)
    return logistic + torch.exp(log_weight - p.margin)


def sigmoid_norm(p: Pairs) -> Tensor:
    """DPO per token (Meng et al. 2024, arXiv 2405.14734, with a reference): -log sigma(beta d).

    d = c/|y+| - r/|y-|
    """
    return F.softplus(-p.beta * p.per_token())


def group(p: Pairs) -> Tensor:
    """All K rejected answers of a question at once: the chosen one against their sum.

        -log [e^(beta c) / (e^(beta c) + sum_k e^(beta r_k))] = softplus(log sum_k e^(-m_k))

    The Plackett-Luce probability that the chosen answer comes first (Rafailov et al. 2023, appendix
    A.3); at K = 1 it is sigmoid DPO. Each of the K pairs carries the loss of its question.
    """
    if p.questions is None:
        raise ValueError("the group loss needs the question of each pair")
    _, place = p.questions.unique(return_inverse=True)  # (P,) which of the Q questions
    return plackett_luce(p.margin, place)[place]


def ranking(p: Pairs) -> Tensor:
    """All pairs of a question at once, where its answers have more than two grades.

        sum_i -log [e^(beta s_i) / (e^(beta s_i) + sum over j of lower grade e^(beta s_j))]

    The likelihood of the grades: each answer comes first among itself and those below it. It is the
    Plackett-Luce likelihood of a whole ranking (Rafailov et al. 2023, appendix A.3, eq. 20) where
    no two grades are alike, and answers of one grade are not compared. With one answer above the
    rest it is `group`, and with two answers DPO. Each pair carries the loss of its question.
    """
    if p.questions is None or p.chosen_answers is None:
        raise ValueError("the ranking loss needs the question and chosen answer of each pair")
    _, place = p.chosen_answers.unique(return_inverse=True)  # (P,) which of the C chosen answers
    terms = plackett_luce(p.margin, place)  # (C,)
    _, question = p.questions.unique(return_inverse=True)  # (P,) which of the Q questions
    owner = torch.zeros_like(terms, dtype=torch.long).scatter(0, place, question)  # (C,)
    sums = torch.zeros_like(terms).index_add(0, owner, terms)  # (C,), of which Q are used
    return sums[question]  # eq. (22) of docs/math.md


def plackett_luce(margin: Tensor, place: Tensor) -> Tensor:
    """Return (G,) -log of the chance that a group's chosen answer comes first in it.

    softplus(log sum_k e^(-m_k)) over the pairs k of a group; `place` is (P,), the group of each.
    """
    most = torch.full_like(margin[: int(place.max()) + 1], -torch.inf)
    most = most.scatter_reduce(0, place, -margin.detach(), "amax")
    # log-sum-exp over the pairs of a group, its largest term taken out
    parts = torch.exp(-margin - most[place])
    sums = torch.zeros_like(most).index_add(0, place, parts)
    return F.softplus(most + sums.log())  # eq. (8) of docs/math.md


FORMULAS: dict[Loss, Callable[[Pairs], Tensor]] = {
    "hinge": hinge, "ipo": ipo, "robust": robust, "exo": exo, "nca": nca, "bco": bco, "sppo": sppo,
    "apo-zero": apo_zero, "apo-down": apo_down, "discopop": discopop, "sigmoid-norm": sigmoid_norm,
    "group": group, "ranking": ranking,
}  # fmt: skip


def divergence_score(
    s: Tensor, divergence: Divergence = "reverse-kl", alpha: float = 0.5
) -> Tensor:
    """Return f'(pi / pi_ref) for s = log(pi / pi_ref): what f-DPO compares instead of s.

        reverse-kl  s                    forward-kl  1 - e^-s
        js          ln 2 + log sigma(s)  alpha       (1 - e^(-alpha s)) / alpha,  0 < alpha < 1

    Wang et al. 2023 (arXiv 2309.16240), table 1, each shifted so that pi = pi_ref scores 0. alpha
    near 0 is the reverse KL and 1 the forward; TRL's coefficient is 1 - alpha.
    """
    if divergence == "reverse-kl":
        return s
    if divergence == "js":
        return math.log(2) + F.logsigmoid(s)
    power = 1.0 if divergence == "forward-kl" else alpha
    return -torch.expm1((-power * s).clamp(max=LARGEST_EXPONENT)) / power


def check_loss(
    loss: Loss,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    divergence: Divergence = "reverse-kl",
    divergence_alpha: float = 0.5,
) -> None:
    """Raise ValueError where these settings do not make a loss."""
    if loss not in get_args(Loss):
        raise ValueError(f"unknown loss {loss!r}; there are {', '.join(get_args(Loss))}")
    if divergence not in get_args(Divergence):
        raise ValueError(f"unknown divergence {divergence!r}; there are {get_args(Divergence)}")
    if not beta > 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"beta {beta} must be positive and 0 <= {label_smoothing} < 0.5")
    if label_smoothing and loss not in SMOOTHED:
        raise ValueError(
            f"label smoothing is defined for the losses {', '.join(SMOOTHED)}, not for {loss}"
        )
    if loss == "exo" and not label_smoothing:
        raise ValueError("the loss exo needs label smoothing above 0; its paper takes 0.001")
    if divergence != "reverse-kl" and loss not in DIVERGENT:
        raise ValueError(
            f"the divergence {divergence} is defined for the losses {', '.join(DIVERGENT)}, which "
            f"compare the two answers, not for {loss}"
        )
    if not 0 < divergence_alpha < 1:
        raise ValueError(f"divergence_alpha {divergence_alpha} must be between 0 and 1")
