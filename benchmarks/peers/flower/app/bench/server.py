"""Flower's own FedAvg on a model that is one array; notes when rounds begin and end."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that remembers when its rounds began, on the system's clock."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.begun = []

    def configure_train(self, server_round, arrays, config, grid):
        self.begun.append(time.time())
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid, context) -> None:
    config = context.run_config
    workers = int(config["workers"])
    values = np.random.default_rng(0).standard_normal(int(config["values"])).astype(np.float32)
    strategy = Timed(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=workers,
        min_available_nodes=workers,
    )
    strategy.start(grid=grid, initial_arrays=ArrayRecord([values]), num_rounds=int(config["rounds"]))
    Path(str(config["figures"])).write_text(json.dumps([*strategy.begun, time.time()]))
