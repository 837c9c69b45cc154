"""Takes mid_block.attentions.0 out of a UNet with onnx-graphsurgeon 0.6.1:
python bypass.py ../../../fixtures/sd15-mini/torchscript/unet.onnx bypassed.onnx
"""

import sys

import onnx
import onnx_graphsurgeon as gs

graph = gs.import_onnx(onnx.load(sys.argv[1]))
last = next(node for node in graph.nodes if node.name == "/mid_block/attentions.0/Add")
branch, skip = last.inputs
output = last.outputs[0]
for reader in list(output.outputs):
    reader.inputs = [skip if operand is output else operand for operand in reader.inputs]
graph.cleanup().toposort()
edited = gs.export_onnx(graph)
edited.ir_version = onnx.load(sys.argv[1]).ir_version
onnx.save(edited, sys.argv[2])
