"""Direct Preference Optimization over tries: log-probs, loss, reference, evaluation.

May import `data`, never `lora`: a model with adapters is a model.
"""

from dpo.evaluate import Metrics, evaluate
from dpo.logps import answer_logps, edge_logps
from dpo.loss import DPOLoss, check_loss, dpo_loss
from dpo.metrics import pair_columns, step_metrics
from dpo.reference import (
    answer_key,
    base_fingerprint,
    missing,
    read_cache,
    score_answers,
    scoring_batches,
    write_cache,
)
from dpo.schedule import Schedule, schedule_factor
from dpo.selfcheck import NumericError, SelfCheck, check_sharing

__all__ = [
    "DPOLoss",
    "Metrics",
    "NumericError",
    "Schedule",
    "SelfCheck",
    "answer_key",
    "answer_logps",
    "base_fingerprint",
    "check_loss",
    "check_sharing",
    "dpo_loss",
    "edge_logps",
    "evaluate",
    "missing",
    "pair_columns",
    "read_cache",
    "schedule_factor",
    "score_answers",
    "scoring_batches",
    "step_metrics",
    "write_cache",
]
