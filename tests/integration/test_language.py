"""Language models with random weights on real text: perplexity falls, and what is exported generates."""

import math
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from cli.main import app
from common.data.examples import Examples, write_examples
from common.records import TaskKind
from experiments.packaged import bbc_news
from tests.integration.federation import Federation
from tests.random_language_model import random_language_model


class OnNews(Federation):
    """Every data file holds news of its own, 12 documents."""

    def write_data(self, name: str, count: int, seed: int, labelled: bool = True) -> Path:
        texts = (bbc_news().texts or [])[seed * 12 : seed * 12 + 12]
        path = self.folder / f"{name}.parquet"
        write_examples(path, Examples(name, texts))
        return path


@pytest.mark.slow
@pytest.mark.packaged
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_perplexity_falls_and_exports_generate(family: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    random_language_model(family, bbc_news().texts or [], model, seed=1)
    settings = {
        "task.max_length": 64,
        "rounds.workers": 2,
        "rounds.minimum": 2,
        "gradient_gap.batches": 1,
        "adapter.targets": "attention+ffn",
    }
    running = OnNews(tmp_path, model, settings, TaskKind.CAUSAL_LM)
    try:
        address = running.start_coordinator()["address"]
        for number in (1, 2):
            running.start_worker(number, address, "--label-column", "")
        running.wait()
    finally:
        running.end()
    perplexities = [math.exp(e.loss) for e in running.status().evaluations if e.model == "fm"]
    assert perplexities[0] > perplexities[1] > perplexities[2]
    assert perplexities[-1] < 0.9 * perplexities[0]
    for out, extra in (("adapter", []), ("merged", ["--merge"])):
        command = ["export", str(running.run), "--out", str(tmp_path / out), *extra]
        assert CliRunner().invoke(app, command).exit_code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    start = tokenizer("The government said", return_tensors="pt")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    said = [tokenizer.decode(m.generate(**start, **options)[0]) for m in (tuned, merged)]
    assert said[0] == said[1]
    assert said[0].startswith("The government said") and len(said[0]) > len("The government said")
