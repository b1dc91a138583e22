"""Train embeddings that are compared by cosine, with a padding row that stays zero."""

import torch
from torch import nn

import manifoldnet as mn

torch.manual_seed(0)
words, topics = 41, 5  # word 0 is the padding
embedding = nn.Embedding(words, 16, padding_idx=0)
# All rows are unit vectors but row 0, which is zero. Dot products of rows are then cosines.
mn.declare(embedding, "weight", mn.Oblique(zero_slices=(0,)), project=True)
optimizer = mn.RiemannianAdam(mn.param_groups(embedding), lr=2e-2)

topic = torch.arange(1, words) % topics
same_topic = [1 + (topic == t).nonzero().flatten() for t in range(topics)]
for _ in range(60):
    lengths = torch.randint(1, 5, (topics, 1))  # your padded sentences go here, two per topic
    drawn = [torch.stack([w[torch.randperm(8)[:4]] for w in same_topic]) for _ in range(2)]
    a, b = (embedding(w.where(torch.arange(4) < lengths, 0)).sum(1) for w in drawn)
    cosines = nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    optimizer.zero_grad()
    nn.functional.cross_entropy(cosines / 0.1, torch.arange(topics)).backward()
    optimizer.step()

weight = embedding.weight.detach()
cosines = weight[1:] @ weight[1:].T - 2 * torch.eye(words - 1)
right = (topic[cosines.argmax(1)] == topic).float().mean()
print(f"the nearest word by cosine has the same topic for {right:.0%} of the words")
assert right > 0.9
assert (weight[0] == 0).all()
mn.verify(embedding)
