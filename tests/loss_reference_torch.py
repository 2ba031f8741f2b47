"""The losses in PyTorch, term by term as the papers write them, from PyTorch alone: what tests/test_losses.py holds ours to.

Embeddings e (N, D), weights w (K, D); labels: [(row, value)]. Each returns the sum of its terms and their number; triplet,
align and asen the loss.
"""

import torch
from torch.nn import functional as F


def cos(a, b):
    return F.cosine_similarity(a, b, dim=0)


def values_of(labels, row):
    return {value for r, value in labels if r == row}


def cosine(e, w, labels, scale, margin, smoothing=0.0):
    """PyTorch's cross-entropy of one label at a time, over the classes that are this label or none of the image's."""
    total = 0 * e.sum() + 0 * w.sum()
    for row, y in labels:
        own = values_of(labels, row)
        classes = [k for k in range(len(w)) if k == y or k not in own]
        logits = torch.stack([scale * (cos(e[row], w[k]) - (margin if k == y else 0)) for k in classes])
        target = torch.tensor([classes.index(y)])
        total = total + F.cross_entropy(logits[None], target, label_smoothing=smoothing) / len(own)
    return total, len({row for row, _ in labels})


def supcon(e, labels, temperature):
    """Equation 2 of Khosla et al. 2020."""
    total, count = 0 * e.sum(), 0
    for i in range(len(e)):
        others = [a for a in range(len(e)) if a != i]
        positives = [p for p in others if values_of(labels, i) & values_of(labels, p)]
        if positives:
            similarity = {a: cos(e[i], e[a]) / temperature for a in others}
            denominator = torch.logsumexp(torch.stack([similarity[a] for a in others]), 0)
            total = total - sum(similarity[p] - denominator for p in positives) / len(positives)
            count += 1
    return total, count


def dense_triplet(e, labels, margin):
    """max(0, margin - cos(x, p) + cos(x, n)), one triplet after another."""
    total, count, n = 0 * e.sum(), 0, len(e)
    shared = [[bool(values_of(labels, i) & values_of(labels, j)) for j in range(n)] for i in range(n)]
    cosines = [[cos(e[i], e[j]) for j in range(n)] for i in range(n)]
    for x in range(n):
        for p in (p for p in range(n) if p != x and shared[x][p]):
            for m in (m for m in range(n) if m != x and not shared[x][m]):
                term = margin - cosines[x][p] + cosines[x][m]
                if term > 0:
                    total, count = total + term, count + 1
    return total, count


def triplet(e, margin):
    x, p, n = e.chunk(3)
    return F.margin_ranking_loss(F.cosine_similarity(x, p), F.cosine_similarity(x, n), torch.ones(len(x), dtype=e.dtype), margin)


def align(e, local):
    """1 - cos of each image, averaged over anchors, positives and negatives apart and added (Dong et al. 2021)."""
    return sum(F.relu(1 - F.cosine_similarity(a, b)).mean() for a, b in zip(e.chunk(3), local.chunk(3)))


def asen(e, local, margin, whole_weight, local_weight, align_weight):
    total = whole_weight * triplet(e, margin)
    return total if local is None else total + local_weight * triplet(local, margin) + align_weight * align(e, local)
