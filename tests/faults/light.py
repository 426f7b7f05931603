"""Many workers in one process: real sessions and transfers, updates without training."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from common.address import Address
from common.model.adapter import trained
from common.records import (
    Activity,
    AdapterSpec,
    ArtifactRef,
    JoinRequest,
    Progress,
    StopTask,
    TrainTask,
    UpdateHeader,
)
from common.storage.tensors import TensorFile, to_bytes
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics

EXAMPLES = 5


@dataclass(frozen=True)
class Fleet:
    """Workers of one run; those in `vanishing` go without a word once they have a task."""

    address: Address
    folder: Path
    names: tuple[str, ...]
    vanishing: frozenset[str] = frozenset()
    delays: Mapping[str, float] | None = None
    """Seconds that a worker takes for its update."""

    async def work(self) -> dict[str, str]:
        """Until the run is over; how it ended for each worker."""
        ends = await asyncio.gather(*(self._one(name) for name in self.names))
        return dict(zip(self.names, ends, strict=True))

    async def _one(self, name: str) -> str:
        request = JoinRequest(name, 1, 2, "light", EXAMPLES)
        coordinator = CoordinatorClient(Endpoint(self.address, 60.0), request, Metrics())
        try:
            reply = await coordinator.join()
            beating = asyncio.create_task(self._beat(coordinator, reply.heartbeat_seconds))
            try:
                async for task in coordinator.tasks():
                    if isinstance(task, StopTask):
                        await coordinator.leave(task.reason)
                        return task.reason
                    if isinstance(task, TrainTask):
                        if name in self.vanishing:
                            return "vanished"
                        await asyncio.sleep((self.delays or {}).get(name, 0.0))
                        await self._deliver(coordinator, name, task, reply.run.adapter)
            finally:
                beating.cancel()
            return "the stream ended"
        finally:
            await coordinator.close()

    async def _beat(self, coordinator: CoordinatorClient, interval: float) -> None:
        while True:
            await coordinator.heartbeat(Progress(Activity.IDLE))
            await asyncio.sleep(interval)

    async def _deliver(
        self, coordinator: CoordinatorClient, name: str, task: TrainTask, spec: AdapterSpec
    ) -> None:
        adapter = await coordinator.download(task.adapter, self.folder / name)
        content = update_for(adapter, task.adapter, spec, name)
        path = self.folder / name / "update"
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        header = UpdateHeader("", task.round, task.adapter.sha256, len(content), digest, EXAMPLES, 0.5, 0.0)
        await coordinator.submit(header, path)


def update_for(adapter: Path, reference: ArtifactRef, spec: AdapterSpec, name: str) -> bytes:
    """A small change, the same whenever the worker is asked."""
    seed = int(hashlib.sha256(f"{name} {reference.sha256}".encode()).hexdigest()[:8], 16)
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        f"delta.{key}": 1e-3 * torch.randn(tensor.shape, generator=draw)
        for key, tensor in TensorFile(adapter).load().items()
        if trained(key, spec)
    }
    return to_bytes(tensors)
