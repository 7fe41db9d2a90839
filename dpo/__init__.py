"""Direct Preference Optimization over tries: log-probs, loss, scoring, evaluation.

May import `data`, never `lora`: a model with adapters is a model.
"""

from dpo.anchors import WORDS, Sampling, draw_anchors, policy_logps
from dpo.evaluation.curves import curves_figure
from dpo.evaluation.dial import STEPS, dial_figure, dial_rows, dial_sizes, largest_within
from dpo.evaluation.drift import DRIFT_TOKENS, Drift, remark
from dpo.evaluation.generate import Drawing, Sample, readable, samples, side_by_side
from dpo.evaluation.measures import (
    Beliefs,
    Measure,
    Metrics,
    believed,
    compare,
    intervals,
    measure,
    pair_margins,
)
from dpo.evaluation.neutral import NEUTRAL_TOKENS, neutral_texts, perplexities, rise
from dpo.evaluation.outcome import AtSize, MeasuredOn, Outcome, drift_of, outcome_of
from dpo.evaluation.pictures import evaluation_figure
from dpo.evaluation.questions import QUESTIONS, evenly, in_words
from dpo.logps import answer_logps, edge_logps
from dpo.loss import DPOLoss, dpo_loss
from dpo.losses import Constants, Divergence, Loss, check_loss, loss_terms, needs_reference
from dpo.memory import Budgets, OutOfMemory, TokenBudget, random_states, restore_random
from dpo.metrics import PairLog, StepLog, in_short, not_finite, spoilt, step_metrics
from dpo.schedule import Schedule, schedule_factor
from dpo.scoring import (
    Scorer,
    Scores,
    all_answers,
    answer_key,
    mean_difference,
    scoring_batches,
    trained_answers,
)
from dpo.selfcheck import (
    NumericError,
    SelfCheck,
    bytes_of_check,
    check_sharing,
    cut,
    where_not_finite,
)
