"""Direct Preference Optimization over tries: log-probs, loss, reference, evaluation.

May import `data`, never `lora`: a model with adapters is a model.
"""

from dpo.curves import draw_curves
from dpo.drift import Drift, remark
from dpo.generate import Sample, side_by_side
from dpo.logps import answer_logps, edge_logps
from dpo.loss import DPOLoss, check_loss, dpo_loss
from dpo.measures import (
    Beliefs,
    Measure,
    Metrics,
    believed,
    compare,
    intervals,
    measure,
    pair_margins,
)
from dpo.memory import OutOfMemory, within_memory
from dpo.metrics import in_short, not_finite, pair_columns, step_metrics
from dpo.outcome import Outcome, outcome_of
from dpo.pictures import draw_evaluation
from dpo.reference import (
    Scores,
    anchors,
    answer_key,
    asked,
    missing,
    read_cache,
    score_answers,
    scoring_batches,
    write_cache,
)
from dpo.schedule import Schedule, schedule_factor
from dpo.selfcheck import (
    NumericError,
    SelfCheck,
    check_sharing,
    largest_activation,
    where_not_finite,
)

__all__ = [
    "Beliefs",
    "DPOLoss",
    "Drift",
    "Measure",
    "Metrics",
    "NumericError",
    "OutOfMemory",
    "Outcome",
    "Sample",
    "Schedule",
    "Scores",
    "SelfCheck",
    "anchors",
    "answer_key",
    "answer_logps",
    "asked",
    "believed",
    "check_loss",
    "check_sharing",
    "compare",
    "dpo_loss",
    "draw_curves",
    "draw_evaluation",
    "edge_logps",
    "in_short",
    "intervals",
    "largest_activation",
    "measure",
    "missing",
    "not_finite",
    "outcome_of",
    "pair_columns",
    "pair_margins",
    "read_cache",
    "remark",
    "schedule_factor",
    "score_answers",
    "scoring_batches",
    "side_by_side",
    "step_metrics",
    "where_not_finite",
    "within_memory",
    "write_cache",
]
