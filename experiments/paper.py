"""The paper's figures, to stand beside ours. Source: FedPFT (arXiv 2404.11536), tables 1 to 3.

Accuracies in %, of the FM with the update plugged in. They are of other models and data than ours on
packaged data: what compares is the order of the methods and the distances between them.
"""

from types import MappingProxyType

FEDPETUNING, FEDOT, FEDPFT = "fedpetuning", "fedot", "fedpft"
NONE, BEFORE, DURING = "fedpft-n", "fedpft-b", "fedpft-d"

# Model, data set → method → accuracy, where every client has the same share of each class.
IID = MappingProxyType(
    {
        ("BERT", "SST-2"): {FEDPETUNING: 91.6, FEDOT: 90.4, FEDPFT: 91.6},
        ("BERT", "QNLI"): {FEDPETUNING: 88.4, FEDOT: 83.9, FEDPFT: 87.5},
        ("BERT", "MNLI-m"): {FEDPETUNING: 80.7, FEDOT: 74.9, FEDPFT: 78.6},
        ("BERT", "MNLI-mm"): {FEDPETUNING: 81.6, FEDOT: 74.9, FEDPFT: 79.0},
        ("BERT", "QQP"): {FEDPETUNING: 87.8, FEDOT: 81.6, FEDPFT: 86.3},
        ("RoBERTa", "SST-2"): {FEDPETUNING: 93.6, FEDOT: 92.8, FEDPFT: 93.1},
        ("RoBERTa", "QNLI"): {FEDPETUNING: 90.8, FEDOT: 85.3, FEDPFT: 88.7},
        ("RoBERTa", "MNLI-m"): {FEDPETUNING: 86.1, FEDOT: 80.6, FEDPFT: 83.4},
        ("RoBERTa", "MNLI-mm"): {FEDPETUNING: 85.5, FEDOT: 81.4, FEDPFT: 83.2},
        ("RoBERTa", "QQP"): {FEDPETUNING: 88.3, FEDOT: 84.6, FEDPFT: 87.1},
    }
)

# Model, data set → method → accuracy at a Dirichlet concentration of 1, 5 and 10.
DIRICHLET = MappingProxyType(
    {
        ("BERT", "SST-2"): {
            FEDPETUNING: (90.6, 90.9, 91.1),
            FEDOT: (89.1, 89.9, 90.1),
            FEDPFT: (89.7, 91.1, 91.6),
        },
        ("BERT", "QNLI"): {
            FEDPETUNING: (87.3, 87.9, 88.1),
            FEDOT: (82.4, 82.9, 83.1),
            FEDPFT: (86.1, 86.9, 87.2),
        },
        ("RoBERTa", "SST-2"): {
            FEDPETUNING: (93.0, 93.3, 93.5),
            FEDOT: (91.7, 92.1, 92.8),
            FEDPFT: (92.1, 92.7, 93.1),
        },
        ("RoBERTa", "QNLI"): {
            FEDPETUNING: (90.2, 90.6, 90.8),
            FEDOT: (84.1, 84.6, 85.1),
            FEDPFT: (87.2, 87.6, 88.1),
        },
    }
)
CONCENTRATIONS = (1, 5, 10)

# QNLI, equal shares: what each alignment is worth.
ABLATION = MappingProxyType(
    {
        "BERT": {NONE: 83.0, BEFORE: 86.9, DURING: 84.3, FEDPFT: 87.5, FEDOT: 83.9},
        "RoBERTa": {NONE: 78.9, BEFORE: 86.7, DURING: 85.5, FEDPFT: 88.7, FEDOT: 85.3},
    }
)

# Of BERT-base and RoBERTa-base, in millions: the layers' parameters at the clients.
LAYER_PARAMETERS = MappingProxyType({FEDPETUNING: 81, FEDOT: 47, FEDPFT: 47})
