"""The other losses of the family, one formula each, and other divergences than the reverse KL.

Most formulas see a pair as two numbers, c = s(y+) and r = s(y-): how much more likely than the
reference the policy finds the chosen and the rejected answer, summed over tokens, in nats. Many of
them see only the margin beta (c - r). Three do without a reference and see log pi itself. A note
says where a paper and TRL 1.16 differ, and which is meant. Shape legend: P pairs.
"""

import difflib
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo", "nca", "bco", "sppo", "apo-zero", "apo-down",
    "discopop", "sigmoid-norm", "group", "ranking", "dpop", "simpo", "orpo", "sft",
]  # fmt: skip
Divergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]

SMOOTHED = ("sigmoid", "robust", "exo")  # losses that define label smoothing
DIVERGENT = (
    "sigmoid", "hinge", "ipo", "robust", "exo", "discopop", "sigmoid-norm", "group", "ranking",
)  # fmt: skip
REFERENCE_FREE = ("simpo", "orpo", "sft")  # losses that see log pi(y|x) alone
LARGEST_EXPONENT = 40.0  # e^40 = 2e17: beyond it a divergence's score is held, and stays finite
DISCOPOP_TEMPERATURE = 0.05  # the paper's


class Constants(NamedTuple):
    """The constants that one formula alone has."""

    dpop_lambda: float = 5.0  # of dpop: how much a fall of the chosen answer costs
    simpo_gamma: float = 0.5  # of simpo: the target of beta times the margin a token


class Pairs(NamedTuple):
    """P pairs as the formulas see them; every tensor is (P,)."""

    c: Tensor  # s(y+), or f'(e^s(y+)) under another divergence
    r: Tensor  # s(y-), likewise
    policy_chosen: Tensor  # log pi(y+|x)
    policy_rejected: Tensor  # log pi(y-|x)
    beta: float
    label_smoothing: float
    constants: Constants
    chosen_lengths: Tensor | None  # tokens of y+, its stop token included
    rejected_lengths: Tensor | None
    questions: Tensor | None  # pairs of one question have the same number
    chosen_answers: Tensor | None  # pairs of one chosen answer have the same number

    @property
    def margin(self) -> Tensor:
        """Return m = beta (c - r)."""
        return self.beta * (self.c - self.r)

    def per_token(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return chosen / |y+| and rejected / |y-|."""
        if self.chosen_lengths is None or self.rejected_lengths is None:
            raise ValueError("this loss needs chosen_lengths and rejected_lengths")
        return chosen / self.chosen_lengths, rejected / self.rejected_lengths


def hinge(p: Pairs) -> Tensor:
    """SLiC (Zhao et al. 2023, arXiv 2305.10425) on DPO's margin: max(0, 1 - m)."""
    return torch.relu(1 - p.margin)


def ipo(p: Pairs) -> Tensor:
    """IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17): (c/|y+| - r/|y-| - 1/(2 beta))^2.

    The paper sums over tokens; its authors said later that means were used, as here and in TRL.
    """
    c, r = p.per_token(p.c, p.r)
    return (c - r - 1 / (2 * p.beta)) ** 2


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
    c, r = p.per_token(p.c, p.r)
    return F.softplus(-p.beta * (c - r))


def group(p: Pairs) -> Tensor:
    """All K rejected answers of a question at once: the chosen one against their sum.

        -log [e^(beta c) / (e^(beta c) + sum_k e^(beta r_k))] = softplus(log sum_k e^(-m_k))

    The Plackett-Luce probability that the chosen answer comes first (Rafailov et al. 2023, appendix
    A.3); at K = 1 it is sigmoid DPO. Each of the K pairs carries the loss of its question.
    """
    if p.questions is None:
        raise ValueError("the group loss needs the question of each pair")
    place = ranks(p.questions)  # (P,) which of the Q questions
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
    place = ranks(p.chosen_answers)  # (P,) which of the C chosen answers
    terms = plackett_luce(p.margin, place)  # (P,), of which C are used and others are 0
    question = ranks(p.questions)  # (P,) which of the Q questions
    owner = torch.zeros_like(place).scatter(0, place, question)  # (P,)
    sums = torch.zeros_like(terms).index_add(0, owner, terms)  # (P,), of which Q are used
    return sums[question]  # eq. (22) of docs/math.md


def ranks(numbers: Tensor) -> Tensor:
    """Return (P,): how many other numbers are smaller, each counted once, for numbers (P,).

    It is the inverse of `unique`, whose size would depend on the values: a GPU would have to wait.
    """
    place = torch.arange(len(numbers), device=numbers.device)
    first = (numbers[:, None] == numbers).int().argmax(1) == place  # (P,) of its number
    return (first & (numbers < numbers[:, None])).sum(1)


def plackett_luce(margin: Tensor, place: Tensor) -> Tensor:
    """Return (P,) -log of the chance that a group's chosen answer comes first in it; 0 of no group.

    softplus(log sum_k e^(-m_k)) over the pairs k of a group; `place` is (P,), the group of each.
    """
    most = torch.full_like(margin, -torch.inf)
    most = most.scatter_reduce(0, place, -margin.detach(), "amax")
    # log-sum-exp over the pairs of a group, its largest term taken out
    parts = torch.exp(-margin - most[place])
    sums = torch.zeros_like(most).index_add(0, place, parts).clamp(min=1)  # 1: of no group
    return F.softplus(most + sums.log())  # eq. (8) of docs/math.md


def dpop(p: Pairs) -> Tensor:
    """DPO-Positive (Pal et al. 2024, arXiv 2402.13228): -log sigma(m - beta lambda max(0, -c)).

    DPO that also asks the chosen answer not to become less likely than the reference finds it. The
    paper takes lambda = 50. Its authors found results much alike from 5 to 500
    (github.com/abacusai/smaug/issues/2); the default here is 5, the mildest of these. TRL has no
    such loss.
    """
    fallen = torch.relu(-p.c)  # how far below the reference y+ is, nats
    return F.softplus(p.beta * p.constants.dpop_lambda * fallen - p.margin)


def simpo(p: Pairs) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6), without a reference.

        -log sigma(beta (log pi(y+|x)/|y+| - log pi(y-|x)/|y-|) - gamma)

    The margin that is aimed at is gamma / beta nats a token. gamma is the paper's, and TRL's
    `simpo_gamma` with the same default, .5. The authors' code asks for the ratio gamma / beta, by
    default .25 with a beta of 2, which is the same gamma.
    """
    chosen, rejected = p.per_token(p.policy_chosen, p.policy_rejected)
    return F.softplus(p.constants.simpo_gamma - p.beta * (chosen - rejected))


def orpo(p: Pairs) -> Tensor:
    """ORPO (Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7), without a reference.

        -log pi(y+|x)/|y+| - beta log sigma(log odds(y+) - log odds(y-))

    odds = P / (1 - P), with P = exp(log pi(y|x) / |y|), the geometric mean of the tokens' chances.
    beta is the paper's lambda. The first term is `sft`; TRL's also averages over the prompt.
    """
    chosen, rejected = p.per_token(p.policy_chosen, p.policy_rejected)
    return p.beta * F.softplus(log_odds(rejected) - log_odds(chosen)) - chosen


def log_odds(mean_logp: Tensor) -> Tensor:
    """Return log [P / (1 - P)] of P = e^mean_logp.

    A 1 - P below the dtype's epsilon is held there, so that the odds and their slope stay finite.
    """
    held = mean_logp.clamp(max=-torch.finfo(mean_logp.dtype).eps)
    return mean_logp - torch.log(-torch.expm1(held))


def sft(p: Pairs) -> Tensor:
    """Return -log pi(y+|x) / |y+|, the term that RPO, CPO and ORPO add; nats a token.

    Each answer is averaged over its own tokens, as in RPO (Pang et al. 2024, arXiv 2404.19733, eq.
    1). TRL's `sft` averages over the tokens of the batch.
    """
    if p.chosen_lengths is None:
        raise ValueError("an SFT term needs chosen_lengths")
    return -p.policy_chosen / p.chosen_lengths


FORMULAS: dict[Loss, Callable[[Pairs], Tensor]] = {
    "hinge": hinge, "ipo": ipo, "robust": robust, "exo": exo, "nca": nca, "bco": bco, "sppo": sppo,
    "apo-zero": apo_zero, "apo-down": apo_down, "discopop": discopop, "sigmoid-norm": sigmoid_norm,
    "group": group, "ranking": ranking, "dpop": dpop, "simpo": simpo, "orpo": orpo, "sft": sft,
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


def loss_terms(text: str) -> dict[Loss, float]:
    """Read a loss, or several with their weights: `sigmoid=0.8,sft=0.2` is {sigmoid: .8, sft: .2}.

    A name without a weight has the weight 1. The weights need not sum to 1.

    Raises:
        ValueError: a name is unknown or stands twice, or a weight is no number above 0.
    """
    terms: dict[Loss, float] = {}
    for item in text.split(","):
        given, equals, number = (part.strip() for part in item.partition("="))
        name = next((known for known in get_args(Loss) if known == given), None)
        if name is None:
            near = difflib.get_close_matches(given, get_args(Loss), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(get_args(Loss))}"
            raise ValueError(f"unknown loss {given!r}; {hint}")
        if name in terms:
            raise ValueError(f"{name} stands twice; give it one weight")
        try:
            terms[name] = float(number) if equals else 1.0
        except ValueError:
            terms[name] = math.nan
        if not 0 < terms[name] < math.inf:
            raise ValueError(f"the weight {number!r} of {name} is not a number above 0")
    return terms


def needs_reference(loss: str) -> bool:
    """Tell whether a loss, or a term of it, compares the policy with the reference."""
    return not loss_terms(loss).keys() <= set(REFERENCE_FREE)


def check_loss(
    loss: str,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    divergence: Divergence = "reverse-kl",
    divergence_alpha: float = 0.5,
    constants: Constants = Constants(),
) -> None:
    """Raise ValueError where these settings do not make a loss.

    Label smoothing needs a term that defines it, and acts on such terms alone. Another divergence
    needs a term that it is defined for, and none that sees the reference in another way.
    """
    terms = loss_terms(loss)
    if divergence not in get_args(Divergence):
        raise ValueError(f"unknown divergence {divergence!r}; there are {get_args(Divergence)}")
    if not beta > 0:
        raise ValueError(f"beta {beta} must be positive")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label smoothing {label_smoothing} must be at least 0 and below 0.5")
    if label_smoothing and not terms.keys() & set(SMOOTHED):
        raise ValueError(
            f"label smoothing is defined for the losses {', '.join(SMOOTHED)}, not for {loss}"
        )
    if "exo" in terms and not label_smoothing:
        raise ValueError("the loss exo needs label smoothing above 0; its paper takes 0.001")
    compared = terms.keys() - set(REFERENCE_FREE)
    if divergence != "reverse-kl" and not (compared and compared <= set(DIVERGENT)):
        raise ValueError(
            f"the divergence {divergence} is defined for the losses {', '.join(DIVERGENT)}, which "
            f"compare the two answers, not for {', '.join(compared - set(DIVERGENT)) or loss}"
        )
    if not 0 < divergence_alpha < 1:
        raise ValueError(f"divergence_alpha {divergence_alpha} must be between 0 and 1")
    if not all(0 <= value < math.inf for value in constants):
        raise ValueError(f"{constants} must be finite, and 0 or more")
