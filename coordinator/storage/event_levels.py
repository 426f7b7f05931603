"""How serious each kind of event is, for logs and for those who watch."""

import logging

# A test holds the table complete: every kind that is recorded anywhere.
LEVELS: dict[str, int] = {
    "classes_agreed": logging.INFO,
    "phase_entered": logging.INFO,
    "aligned": logging.INFO,
    "sub_model_ready": logging.INFO,
    "stand_in_judged": logging.INFO,
    "stand_in_broken": logging.WARNING,
    "run_resumed": logging.INFO,
    "run_rewound": logging.WARNING,
    "run_crashed": logging.ERROR,
    "corrected": logging.INFO,
    "correction_left_out": logging.WARNING,
    "round_opened": logging.INFO,
    "round_short": logging.WARNING,
    "round_closed": logging.INFO,
    "gradient_gap": logging.INFO,
    "evaluated": logging.INFO,
    "validated": logging.INFO,
    "validation_short": logging.WARNING,
    "stopped_early": logging.INFO,
    "run_finished": logging.INFO,
    "run_failed": logging.ERROR,
    "run_stopped": logging.INFO,
    "worker_joined": logging.INFO,
    "worker_lost": logging.WARNING,
    "worker_returned": logging.INFO,
    "worker_left": logging.INFO,
    "worker_quit": logging.WARNING,
    "worker_declined": logging.WARNING,
    "worker_cannot": logging.WARNING,
    "worker_given_up": logging.WARNING,
    "name_contested": logging.WARNING,
    "update_received": logging.INFO,
    "updates_summed": logging.INFO,
    "privacy_promised": logging.INFO,
    "noise_too_large": logging.WARNING,
    "secure_refused": logging.WARNING,
    "update_set_aside": logging.WARNING,
    "update_refused": logging.WARNING,
    "scores_received": logging.INFO,
    "scores_refused": logging.WARNING,
    "update_damaged": logging.WARNING,
    "workers_dismissed": logging.INFO,
}


def level_of(kind: str) -> int:
    """A kind of another version may be anything."""
    return LEVELS.get(kind, logging.WARNING)
