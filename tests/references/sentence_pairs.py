"""Sentence pairs with lists of tokens, one document after the other, as the papers tell it."""

import random


def pairs(documents, task, capacity, short_probability, seed, repeat):
    """[(A, B, label)] of documents that are lists of sentences, which are lists of tokens."""
    documents = [[s for s in document if s] for document in documents]
    documents = [document for document in documents if document]
    found = []
    for number, document in enumerate(documents):
        draw = random.Random(f"{seed} {repeat} {number}")
        others = documents[:number] + documents[number + 1 :]
        rest = list(document)
        while len(rest) >= 2:
            target = capacity
            if draw.random() < short_probability:
                target = choose(draw, range(2, capacity + 1))
            chunk = [rest.pop(0), rest.pop(0)]
            while rest and sum(map(len, chunk)) < target:
                chunk.append(rest.pop(0))
            size = choose(draw, range(1, len(chunk)))
            a, b = joined(chunk[:size]), joined(chunk[size:])
            label = int(draw.random() < 0.5)
            if label and task == "sop":
                a, b = b, a
            elif label:
                rest = chunk[size:] + rest  # put back
                other = choose(draw, others)
                b = []
                for sentence in other[choose(draw, range(len(other))) :]:
                    b += sentence
                    if len(b) >= target - len(a):
                        break
            truncate(a, b, capacity, draw)
            found.append((a, b, label))
    return found


def choose(draw, options):
    return options[int(draw.random() * len(options))]


def joined(sentences):
    return [token for sentence in sentences for token in sentence]


def truncate(a, b, capacity, draw):
    while len(a) + len(b) > capacity:
        longer = a if len(a) > len(b) else b
        longer.pop(0 if draw.random() < 0.5 else -1)
