"""The retry rules of all tasks: which failures are retried, and when."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
from talaria.common.errors import Unavailable, UserError
from talaria.tracking.mlflow_client import TrackingError

PER_EXCEPTION = ExceptionRetryPolicy(
    [
        RetryRule(
            [Unavailable, TrackingError, ConnectionError, TimeoutError],
            RetryAction.RETRY,
            retry_delay=timedelta(minutes=2),
            reason="Something outside does not answer; it needs time.",
        ),
        RetryRule(UserError, RetryAction.FAIL, reason="Another attempt cannot help: the settings or the data are wrong."),
    ]
)
"""Unavailable is a UserError, so its rule comes first. Anything else waits 15 seconds, then twice as long each time."""

RETRIES = {
    "retries": 2,
    "retry_delay": timedelta(seconds=15),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": PER_EXCEPTION,
}
"""Retry settings for a DAG's default_args."""
