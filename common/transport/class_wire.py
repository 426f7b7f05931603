"""Protobuf ↔ records, for the classes that workers tell before they join."""

from fedpft.v1 import federation_pb2

from common.errors import BadMessage
from common.records import ClassCounts
from common.transport.wire import worker_name

_MOST_COUNTED = 2**53


def class_counts_to_pb(r: ClassCounts) -> federation_pb2.TellClassesRequest:
    classes = [federation_pb2.ClassCount(name=name, count=count) for name, count in r.counts.items()]
    return federation_pb2.TellClassesRequest(worker=r.worker, examples=r.examples, classes=classes)


def class_counts_from_pb(m: federation_pb2.TellClassesRequest) -> ClassCounts:
    counts = {c.name: c.count for c in m.classes}
    if m.examples < 1 or len(counts) < len(m.classes):
        raise BadMessage("a worker tells each of its classes once, and has at least one example")
    for name, count in counts.items():
        if not name or name != name.strip() or not 1 <= count <= _MOST_COUNTED:
            raise BadMessage(f"class {name[:40]!r} must have a name without blanks around it, and be there")
    return ClassCounts(worker_name(m.worker), m.examples, counts)
