#!/usr/bin/env python3
"""Write a chain of Relu nodes: a graph of a given number of nodes and no weights. Needs nothing but Python.

chain.py NODES OUTPUT.onnx
"""

import sys


def varint(number):
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def value(name):
    dims = b"".join(message(1, number(1, size)) for size in (2, 4, 8, 8))
    tensor = number(1, 1) + message(2, dims)
    return message(1, name) + message(2, message(1, tensor))


def main(nodes, output):
    graph = bytearray()
    for at in range(nodes):
        fields = (1, b"v%d" % at), (2, b"v%d" % (at + 1)), (3, b"/block/relu_%d" % at), (4, b"Relu")
        graph += message(1, b"".join(message(*field) for field in fields))
    graph += message(2, b"chain") + message(11, value(b"v0")) + message(12, value(b"v%d" % nodes))
    model = number(1, 8) + message(7, bytes(graph)) + message(8, number(2, 17))
    with open(output, "wb") as file:
        file.write(model)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
