"""Distil in a plain PyTorch loop: capture the teacher once, then train a student from the book alone."""

import tempfile

import torch
from torch.nn import Embedding, Linear, Parameter, Sequential, Tanh

from stillroom.losses import fused_linear_divergence
from stillroom.signals import Book, BookHeader, Signals, capture, token_keys

torch.manual_seed(0)
VOCAB, WIDTH, LENGTH = 1000, 32, 64
sequences = torch.randint(VOCAB, (128, LENGTH))
mask = torch.arange(LENGTH) > 0  # every token but the first is predicted
teacher, student = (Sequential(Embedding(VOCAB, WIDTH), Linear(WIDTH, WIDTH), Tanh()) for _ in range(2))
teacher_head, student_head = torch.randn(VOCAB, WIDTH), Parameter(torch.zeros(VOCAB, WIDTH))
header = BookHeader("toy", "plain", VOCAB, temperature=1.0, kind="head+draws", budget=36, teacher="toy")

with tempfile.TemporaryDirectory() as folder:
    with Book.create(folder, header) as book, torch.no_grad():
        for tokens in sequences:
            logits = (teacher(tokens) @ teacher_head.T)[:-1]  # place t predicts token t + 1
            keys = token_keys(book.key(tokens, mask), torch.arange(1, LENGTH))
            book.append(tokens, mask, capture(logits, keys=keys, temperature=1.0, budget=36))

    book = Book.open(folder, tokenizer="toy", temperature=1.0)
    optimiser = torch.optim.AdamW([*student.parameters(), student_head], lr=1e-2)
    for epoch in range(6):
        total = 0.0
        for batch in torch.randperm(len(sequences)).split(8):
            rows = book.read([book.key(sequences[i], mask) for i in batch])
            hidden = torch.cat([student(row.token_ids)[:-1] for row in rows])
            result = fused_linear_divergence(hidden, student_head, Signals.cat([row.targets for row in rows]))
            optimiser.zero_grad()
            result.loss.backward()
            optimiser.step()
            total += float(result.values.mean()) / (len(sequences) / 8)
        print(f"epoch {epoch + 1}: KL {total:.3f} nats a token")
