"""A client that changes the parameters and does not train."""

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context) -> Message:
    changed = [array + np.float32(1e-6) for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 100})
    content = RecordDict({"arrays": ArrayRecord(changed), "metrics": metrics})
    return Message(content=content, reply_to=message)
