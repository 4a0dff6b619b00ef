"""A TensorBoard log of metrics; equal metrics give equal bytes."""

from __future__ import annotations

import io

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FILE_NAME = "events.out.tfevents.0.heterotissue"


def event_log(scalars: dict[str, list[dict[str, float]]]) -> bytes:
    """Return an event file of scalars; its wall time is the step, so that it is reproducible.

    Args:
        scalars: group → rows, each with 'step' and named values.
    """
    body = io.BytesIO()
    writer = RecordWriter(body)
    writer.write(Event(file_version="brain.Event:2", wall_time=0).SerializeToString())
    for group, rows in scalars.items():
        for row in rows:
            step = int(row["step"])
            values = [
                Summary.Value(tag=f"{group}/{name}", simple_value=value)
                for name, value in row.items()
                if name != "step"
            ]
            event = Event(wall_time=step, step=step, summary=Summary(value=values))
            writer.write(event.SerializeToString())
    writer.flush()
    return body.getvalue()
