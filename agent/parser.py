"""A parser's process: write bodies in, log operations out, through memory that the store shares with it.

`python -m agent.parser PARENT FD BYTES`: on standard input comes an order with its sizes before it, on
standard output goes the size of the answer. It ends with its input, or with its parent.
"""

from __future__ import annotations

import mmap
import sys

from agent.child import tie_to
from agent.store.parsing import ANSWER, HEAD, answered, no_room


def main() -> None:
    parent, fd, size = (int(argument) for argument in sys.argv[1:])
    tie_to(parent)
    shared = mmap.mmap(fd, size)
    orders, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(ANSWER.pack(0))  # ready
    answers.flush()
    while head := orders.read(HEAD.size):
        order_size, body_size = HEAD.unpack(head)
        answer = answered(orders.read(order_size), shared[:body_size])
        if len(answer) > size:
            answer = no_room(len(answer), size)
        shared[: len(answer)] = answer
        answers.write(ANSWER.pack(len(answer)))
        answers.flush()


if __name__ == "__main__":
    main()
