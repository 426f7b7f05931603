"""Protobuf ↔ records, for scores at the workers."""

from fedpft.v1 import federation_pb2

from common.records import ScoreSums, SubmittedScores
from common.transport import wire


def scores_to_pb(s: SubmittedScores) -> federation_pb2.SubmitScoresRequest:
    sums = federation_pb2.ScoreSums(
        examples=s.scores.examples,
        answers=s.scores.answers,
        right=s.scores.right,
        loss=s.scores.loss,
        counts=s.scores.counts,
        sums=s.scores.sums,
    )
    return federation_pb2.SubmitScoresRequest(
        session=s.session, round=s.round, adapter_sha256=s.adapter_sha256, scores=sums
    )


def scores_from_pb(m: federation_pb2.SubmitScoresRequest) -> SubmittedScores:
    """Whether the figures can be is judged with the scores."""
    s = m.scores
    sums = ScoreSums(s.examples, s.answers, s.right, s.loss, tuple(s.counts), tuple(s.sums))
    return SubmittedScores(m.session, m.round, wire.digest(m.adapter_sha256), sums)
