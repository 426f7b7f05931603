"""How much each FFN neuron matters."""

from torch import Tensor

from common.model.families import Ffn


def l2_norm(ffn: Ffn) -> Tensor:
    """L2 norm of each neuron's incoming and outgoing weights together, float [K].

    s_j = sqrt(|W1[j, :]|^2 + |W2[:, j]|^2). Source: FedPFT, section 3.2.
    """
    incoming = ffn.up.weight.detach().square().sum(1)
    outgoing = ffn.down.weight.detach().square().sum(0)
    return (incoming + outgoing).sqrt()


def top_k(score: Tensor, k: int) -> Tensor:
    """Indices of the `k` highest scores, ascending, int64 [k]; of equals the first counts as higher."""
    return score.argsort(descending=True, stable=True)[:k].sort().values
